"""Parse JSON answers into an object of the caller's class or plain data."""

from __future__ import annotations

from operator import itemgetter
from typing import Any

from langchain_core.language_models import LanguageModelInput
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.base import OutputParserLike
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.pydantic import is_basemodel_subclass


def parse_answers(
    model: Runnable[LanguageModelInput, Any], schema: dict[str, Any] | type, include_raw: bool
) -> Runnable[LanguageModelInput, Any]:
    """Return a chain that runs the model and parses its JSON answer.

    The chain returns an object of `schema` if `schema` is a pydantic class, and plain data for any other
    schema. With `include_raw` the result is a dict with the keys `raw`, `parsed` and `parsing_error`, as in
    langchain.
    """
    parser: OutputParserLike = JsonOutputParser()
    if isinstance(schema, type) and is_basemodel_subclass(schema):
        parser = PydanticOutputParser(pydantic_object=schema)
    if not include_raw:
        return model | parser
    all_three = RunnablePassthrough.assign(
        parsed=itemgetter("raw") | parser, parsing_error=lambda _: None
    ).with_fallbacks([RunnablePassthrough.assign(parsed=lambda _: None)], exception_key="parsing_error")
    return RunnableMap(raw=model) | all_three
