"""Links of names in docstrings and signatures, to their entries and to the sites of other packages.

The build downloads nothing, so the addresses of other packages stand here and not in their inventories.
"""

from __future__ import annotations

import builtins
import inspect
import re
import sys

from docutils import nodes
from reference import find_homes, list_packages, public_names
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxRole

_TORCH = "https://docs.pytorch.org/docs/stable"
_GYMNASIUM = "https://gymnasium.farama.org/api"
_ARRAYS = "https://docs.kidger.site/jaxtyping/api/array/"
_RLLIB = "https://docs.ray.io/en/latest/rllib/package_ref/doc"
_ADDRESSES = {
    "gymnasium.Env": f"{_GYMNASIUM}/env/#gymnasium.Env",
    "gymnasium.ObservationWrapper": f"{_GYMNASIUM}/wrappers/observation_wrappers/"
    "#gymnasium.ObservationWrapper",
    "gymnasium.Wrapper": f"{_GYMNASIUM}/wrappers/#gymnasium.Wrapper",
    "gymnasium.spaces.Space": f"{_GYMNASIUM}/spaces/#gymnasium.spaces.Space",
    "gymnasium.vector.VectorEnv": f"{_GYMNASIUM}/vector/#gymnasium.vector.VectorEnv",
    "gymnasium.vector.VectorWrapper": f"{_GYMNASIUM}/vector/wrappers/#gymnasium.vector.VectorWrapper",
    "huggingface_hub.PyTorchModelHubMixin": "https://huggingface.co/docs/huggingface_hub/package_reference/mixins"
    "#huggingface_hub.PyTorchModelHubMixin",
    "jaxtyping.Bool": _ARRAYS,
    "jaxtyping.Float": _ARRAYS,
    "jaxtyping.Int": _ARRAYS,
    "numpy.ndarray": "https://numpy.org/doc/stable/reference/generated/numpy.ndarray.html",
    "pandas.DataFrame": "https://pandas.pydata.org/docs/reference/api/pandas.DataFrame.html",
    "pettingzoo.AECEnv": "https://pettingzoo.farama.org/api/aec/#pettingzoo.utils.env.AECEnv",
    "pettingzoo.ParallelEnv": "https://pettingzoo.farama.org/api/parallel/#pettingzoo.utils.env.ParallelEnv",
    "ray.rllib.algorithms.algorithm_config.AlgorithmConfig": f"{_RLLIB}/ray.rllib.algorithms."
    "algorithm_config.AlgorithmConfig.html",
    "ray.rllib.core.rl_module.rl_module.RLModuleSpec": f"{_RLLIB}/ray.rllib.core.rl_module.rl_module."
    "RLModuleSpec.html",
    "torch.Generator": f"{_TORCH}/generated/torch.Generator.html",
    "torch.Tensor": f"{_TORCH}/tensors.html#torch.Tensor",
    "torch.device": f"{_TORCH}/tensor_attributes.html#torch.device",
    "torch.dtype": f"{_TORCH}/tensor_attributes.html#torch.dtype",
    "torch.nn.Module": f"{_TORCH}/generated/torch.nn.Module.html",
    "torch.nn.Parameter": f"{_TORCH}/generated/torch.nn.parameter.Parameter.html",
    "transformers.Cache": "https://huggingface.co/docs/transformers/internal/generation_utils#transformers.Cache",
    "transformers.PreTrainedModel": "https://huggingface.co/docs/transformers/main_classes/model"
    "#transformers.PreTrainedModel",
    "transformers.PreTrainedTokenizerBase": "https://huggingface.co/docs/transformers/internal/tokenization_utils"
    "#transformers.PreTrainedTokenizerBase",
}
"""Addresses of names in signatures, by the names that their packages document."""
_BY_LAST_PART = {(name.partition(".")[0], name.rpartition(".")[2]): name for name in _ADDRESSES}
_UNQUALIFIED = {
    "AIMessage": "langchain_core.messages.ai.AIMessage",
    "AIMessageChunk": "langchain_core.messages.ai.AIMessageChunk",
    "BaseMessage": "langchain_core.messages.base.BaseMessage",
    "Bool": "jaxtyping.Bool",
    "Embeddings": "langchain_core.embeddings.embeddings.Embeddings",
    "Float": "jaxtyping.Float",
    "Int": "jaxtyping.Int",
    "Path": "pathlib.Path",
    "RunnableConfig": "langchain_core.runnables.config.RunnableConfig",
    "Tensor": "torch.Tensor",
    "ndarray": "numpy.ndarray",
}
"""Names that annotations have as they stand in the code. Their modules import them for type checkers only."""
_IN_FUNCTIONS = ("bool", "float", "int", "object", "type")
"""Built-in types that Python documents on the page of its functions."""


class NameOrCode(SphinxRole):
    """Role of text in single backticks: a link if it is a name of the reference, else code."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Return a literal, or a reference that Sphinx resolves later."""
        code = nodes.literal(self.rawtext, self.text, classes=["code"])
        if not re.fullmatch(r"[A-Za-z_][\w.]*(\(\))?", self.text) or self.text == "scrubjay":
            return [code], []
        return [_pending(self.text, code, self.env.docname, dict(self.env.ref_context))], []


def hide_exports(app: Sphinx, env: BuildEnvironment) -> None:
    """Leave the second and later exports of an object out of the search and of unqualified links."""
    homes = set(find_homes().values())
    objects = env.domains.python_domain.objects
    for package in list_packages():
        for name in {f"{package}.{name}" for name, _ in public_names(package)} - homes:
            if name in objects:
                objects[name] = objects[name]._replace(aliased=True)


def link_code(app: Sphinx, document: nodes.document) -> None:
    """Link full names, such as `scrubjay.memory.make`, in the code of written pages."""
    for code in list(document.findall(nodes.literal)):
        outside = not isinstance(code.parent, nodes.reference | nodes.title | pending_xref)
        if outside and re.fullmatch(r"scrubjay(\.\w+)+(\(\))?", code.astext()):
            code.replace_self(_pending(code.astext(), code.deepcopy(), app.env.docname, {}))


def _pending(text: str, code: nodes.literal, page: str, place: dict[str, object]) -> pending_xref:
    reference = pending_xref(
        "", refdomain="py", reftype="obj", reftarget=text, refexplicit=False, refdoc=page, refwarn=False
    )
    reference["py:module"], reference["py:class"] = place.get("py:module"), place.get("py:class")
    reference += code
    return reference


def link_outside(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, code: nodes.TextElement
) -> nodes.reference | None:
    """Return a link to the page of another package that documents a name, if it is known."""
    target = node.get("reftarget", "").removesuffix("()")
    if node.get("refdomain") != "py" or (node["reftype"] == "obj" and "." not in target):
        return None
    address = find_address(target)
    return nodes.reference("", "", code, internal=False, refuri=address) if address else None


def find_address(name: str) -> str | None:
    """Return the address at which another package documents a name.

    Modules whose names begin with an underscore are no part of documented names.
    """
    name = _UNQUALIFIED.get(name, name)
    parts = [part for part in name.split(".") if not part.startswith("_")]
    package, last = parts[0], parts[-1]
    if package in ("langchain", "langchain_core") and len(parts) > 1:
        return "/".join(["https://reference.langchain.com/python", package.replace("_", "-"), *parts[1:]])
    if package == "langgraph":
        return "https://reference.langchain.com/python/langgraph"
    if (len(parts) == 1 and hasattr(builtins, last)) or name == "None":
        return _python(last)
    if package in sys.stdlib_module_names and len(parts) > 1:
        module = ".".join(parts[:-1])
        return f"https://docs.python.org/3/library/{module}.html#{module}.{last}"
    return _ADDRESSES.get(_BY_LAST_PART.get((package, last), ""))


def _python(name: str) -> str:
    value = getattr(builtins, name, None)
    if value is None:
        page = "constants"
    elif inspect.isclass(value) and issubclass(value, BaseException):
        page = "exceptions"
    else:
        page = "functions" if name in _IN_FUNCTIONS else "stdtypes"
    return f"https://docs.python.org/3/library/{page}.html#{name}"
