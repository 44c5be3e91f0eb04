"""Langchain's standard tests for chat models on the scripted model, which the other tests use."""

from __future__ import annotations

import pytest
from langchain_core.messages import AIMessage
from langchain_tests.unit_tests import ChatModelUnitTests

from .scripted_model import ScriptedModel

pytestmark = pytest.mark.requires("langchain_tests")


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
