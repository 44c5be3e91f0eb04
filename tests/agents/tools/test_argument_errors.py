"""Messages about invalid arguments of a call."""

import re
from typing import Any, Literal

import pytest
from pydantic import ConfigDict, ValidationError, create_model

from scrubjay.agents.language.prompts import load_prompts
from scrubjay.agents.tools.argument_errors import describe_faults


def test_english_words_of_faults_are_pydantic_s():
    kinds: dict[str, Any] = {
        "s": str, "i": int, "f": float, "b": bool, "l": list, "d": dict, "w": Literal["solar", "lunar"],
    }  # fmt: skip
    fields: dict[str, Any] = {name: (kind, ...) for name, kind in kinds.items()}
    schema = create_model("schema", __config__=ConfigDict(extra="forbid"), **fields)
    wrong = [dict.fromkeys([*kinds, "more"], value) for value in (None, "?", 1.5, [])]
    names = set()
    for arguments in [{}, *wrong]:
        with pytest.raises(ValidationError) as raises:
            schema(**arguments)
        faults = raises.value.errors()
        names |= {f"fault_{fault['type']}" for fault in faults}
        plain = "; ".join(f"{fault['loc'][0]}: {fault['msg']}" for fault in faults)
        assert describe_faults(raises.value, load_prompts("en")) == plain
        assert not re.search("Input|valid", describe_faults(raises.value, load_prompts("zh")))
    assert names == {name for name in load_prompts("en").names if name.startswith("fault_")}
