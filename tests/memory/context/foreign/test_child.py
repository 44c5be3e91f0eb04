"""Process of a trial: it has no torch, starts no process, and opens no connection."""

from __future__ import annotations

import json
import socket
import subprocess
import sys

import pytest

from scrubjay.memory.context.foreign import child

pytestmark = pytest.mark.requires("transformers")


def run(request: dict, before: str = "pass") -> dict:
    start = f"import sys; sys.path[:] = {sys.path!r}; sys.modules['torch'] = None"
    code = f"{start}; from scrubjay.memory.context.foreign import child; {before}"
    result = subprocess.run(
        [sys.executable, "-P", "-c", f"{code}; child.main()"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(result.stdout.splitlines()[-1])


REQUEST = {"gguf_file": None, "cpu_seconds": 60, "data_bytes": 2**30, "mapped_bytes": 2**31}


@pytest.mark.slow
def test_an_honest_model_passes_without_torch(tmp_path, tiny_chat):
    tiny_chat[1].save_pretrained(tmp_path)
    check = "child._try_templates = lambda _: sys.stderr.write('') if sys.modules['torch'] is None else 1 / 0"
    assert run(REQUEST | {"folder": str(tmp_path)}, check) == {"limit": None, "error": None}


@pytest.mark.slow
def test_a_folder_that_cannot_be_read_is_an_error_not_a_limit(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{")
    verdict = run(REQUEST | {"folder": str(tmp_path)})
    assert verdict["limit"] is None
    assert verdict["error"]


@pytest.mark.parametrize("event", ["socket.connect", "subprocess.Popen", "os.system", "os.exec", "os.fork"])
def test_effects_are_refused(event):
    with pytest.raises(PermissionError, match=event):
        child._refuse_effects(event, (None, None))
    child._refuse_effects("open", ("file", "rb", 0))
    with pytest.raises(PermissionError):
        child._refuse_effects("open", ("file", "w", 0))
    assert socket.socket  # the hook is not installed here


def test_a_tokenizer_that_makes_many_tokens_is_a_limit():
    with pytest.raises(child.TrialLimitError, match="limit 3"):
        child._bound(4, 3)
