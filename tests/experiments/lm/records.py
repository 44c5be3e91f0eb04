"""Records of KAgentBench made by hand, in two languages, and their scores."""

import json
from fractions import Fraction

from scrubjay.experiments.lm.prompt_formats import StepPlan, format_plan

SEARCH = {"name": "web_search", "parameters": {"properties": {"text": {}, "count": {}}}}
TIME = {"name": "time_delta", "parameters": {"properties": {"start": {}, "end": {}}}}
TREE = {"thought": "find the tallest tree", "tool_name": "web_search", "tool_args": {"text": "tallest tree"}}
GAP = {"thought": "算出年龄差", "tool_name": "time_delta", "tool_args": {"start": "1815", "end": "1912"}}


def record(kind, references, predictions, **more):
    return {
        "id": "q1",
        "type": kind,
        "golden_result_list": references,
        "funcs": [SEARCH, TIME],
        "model_predict": predictions,
        **more,
    }


def kuai(thought, tool, **arguments):
    return json.dumps({"task_name": thought, "command": {"name": tool, "args": arguments}})


HAND = [
    # 3 of 4 words in common: 2 * 3 / (4 + 3).
    (
        record(
            "plantooluse",
            [TREE],
            {"KuaiAgent": kuai("find the tree", "web_search", text="tallest tree")},
        ),
        {"plan": Fraction(6, 7), "tool": 1},
    ),
    # Another tool: nothing, whatever the words.
    (
        record("plantooluse", [TREE], {"KuaiAgent": kuai("find the tallest tree", "browse", text="tallest")}),
        {"plan": 0, "tool": 0},
    ),
    # Chinese by characters, 4 of 5 and 4; one argument of two is missing; the better one of two references.
    (
        record(
            "plantooluse",
            [TREE, GAP],
            {"AutoGPT": format_plan("AutoGPT", StepPlan("算年龄差", "time_delta", {"end": "1912"}))},
        ),
        {"plan": Fraction(8, 9), "tool": Fraction(1, 2)},
    ),
    # The mean over templates: the second one cannot be read.
    (
        record(
            "plantooluse",
            [TREE],
            {
                "ToolLlama": "Thought: find the tallest tree\nAction: web_search\n"
                'Action Input: {"text": "tree"}',
                "KuaiAgent": "I do not know.",
            },
        ),
        {"plan": Fraction(1, 2), "tool": Fraction(2, 3) / 2},
    ),
    # ReACT's word Thought and its colon count as words of the thought; its input is the tool's first
    # argument.
    (
        record(
            "plantooluse",
            [TREE],
            {
                "ReACT": "Thought: find the tallest tree\nAction: web_search\nAction Input: tallest tree\n"
                "Observation"
            },
        ),
        {"plan": Fraction(8, 10), "tool": 1},
    ),
    # An empty reply earns nothing, not what the template before it earned.
    (
        record(
            "plantooluse",
            [TREE],
            {"KuaiAgent": kuai("find the tallest tree", "web_search", text="tallest tree"), "ReACT": ""},
        ),
        {"plan": Fraction(1, 2), "tool": Fraction(1, 2)},
    ),
    # ModelScope's form has no place for a thought.
    (
        record(
            "plantooluse",
            [TREE],
            {
                "ModelScope": format_plan(
                    "ModelScope", StepPlan("find the tallest tree", "web_search", {"text": "tallest tree"})
                )
            },
        ),
        {"plan": 0, "tool": 1},
    ),
    # Nothing to give and nothing given is right; a reference without a tool does not count.
    (
        record(
            "plantooluse",
            [{**TREE, "tool_args": {}}, {**TREE, "tool_name": "None"}],
            {"KuaiAgent": kuai("x", "web_search")},
        ),
        {"plan": 0, "tool": 1},
    ),
    # 0.3 of the thought's 8/9 and 0.7 of the arguments' half.
    (
        record(
            "reflextion",
            [GAP],
            {"KuaiAgent": kuai("算年龄差", "time_delta", end="1912")},
            memory_last_task={"tool_name": "web_search", "tool_args": {"text": "x"}},
        ),
        {"reflection": Fraction(3, 10) * Fraction(8, 9) + Fraction(7, 10) * Fraction(1, 2)},
    ),
    # To do the last task again is no reflection, however alike.
    (
        record(
            "reflextion",
            [GAP],
            {"KuaiAgent": kuai(GAP["thought"], "time_delta", **GAP["tool_args"])},
            memory_last_task={"tool_name": "time_delta", "tool_args": GAP["tool_args"]},
        ),
        {"reflection": 0},
    ),
    (
        record(
            "conclusion",
            [{"golden_result": "六月最热"}, "It was June."],
            {"KuaiAgent": "六月", "AutoGPT": 'do_nothing(response="It was June.")'},
        ),
        {"concluding": (Fraction(4, 6) + 1) / 2},
    ),
    (
        record(
            "conclusion",
            ["It was June."],
            {"ToolLlama": 'Action Input: {"final_answer": "It was June."}', "ReACT": ""},
        ),
        {"concluding": Fraction(1, 2)},
    ),
    (
        record("profile", [{"golden_result": "我是小鸟"}, {"golden_result": "I am a jay"}], "I am a bird"),
        {"profile": Fraction(3, 4)},
    ),
    (record("profile", ["I am a jay"], ""), {"profile": 0}),
]
