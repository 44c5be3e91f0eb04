"""Langchain's own tests of chat models, on the scripted model that the other tests rest on."""

from __future__ import annotations

import pytest
from langchain_core.messages import AIMessage

pytest.importorskip("langchain_tests")

from langchain_tests.unit_tests import ChatModelUnitTests

from .scripted import ScriptedModel


class TestScriptedModel(ChatModelUnitTests):
    @property
    def chat_model_class(self):
        return ScriptedModel

    @property
    def chat_model_params(self):
        return {"rule": lambda messages: AIMessage("yes")}

    @property
    def has_tool_choice(self):
        return True
