"""A grammar of mistakes: for every verb what is right, and what people and disks make of it."""

from __future__ import annotations

import random
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from .damage import copied, damage, files

NUMBERS = (
    "-1", "0", "1", "nan", "inf", "-inf", "1e9", "1e400", str(2**31), str(2**63), str(2**70), str(-(2**70)),
    "1000000000", "9" * 5000, "1.5", "", "ten", "0x10", "1_0", "١", "--", "1,5",
)  # fmt: skip
WORDS = (
    "",
    " ",
    "x" * 5000,
    "é",
    "\udcff",
    "-",
    "--",
    "none",
    "../..",
    "a b",
    "a=b",
    "[1]",
    "\x1b[31m",
    "%s",
    "{}",
)
PATHS = (
    *("", ".", "nowhere", "/dev/null", "/dev/full", "/dev/null/x", "/proc/x", "x" * 300, "\udcff", "~"),
    *("note.txt", "/proc/self/mem", "a/b/c", "\u00e9.png", "x.txt", "x.png", "x.gif", "x.mp4", "x.", ".x"),
    *("circle", "folder", "-"),
)


@dataclass(frozen=True)
class Form:
    """One way to write a verb that works, with `{name}` for a file of the world, and its options."""

    words: str
    numbers: str = ""
    """Options that take some."""
    named: str = ""
    """Options that take a word."""
    paths: str = ""
    """Options that take a file's name."""
    typed: bytes = b""
    fixed: str = ""
    """Words that keep it short; a mistake comes later, and may overrule them."""


_MORE = (*WORDS, "--wings", "--help", "-x", "--set")
_FILE = re.compile(r"\{(?!word)(\w+)\}")
TINY = "--total-steps 64 --env.num-envs 4 --segment-length 8 --eval-episodes 2"
_TRAINED = "--total-steps --segment-length --seed --eval-episodes --checkpoint-seconds"
_AGENT = (
    f"{_TRAINED} --env.num-envs --ppo.gamma --ppo.epochs --ppo.learning-rate --ppo.num-minibatches "
    "--policy.memory.dim --memory.dim --ppo.clip-coefficient --ppo.target-kl"
)
_NAMES = "--memory --learner --method --env --set --device --engine --recipe --env.id"
_LM = "--budget --max-tokens --seed --temperature"
_LONG_NAMES = "--methods --device --dtype --title --model"
_ASKED = (
    b"Hello\n/help\n/policy sinks x\n/policy nine\n/save folder\n/load folder\n/load nowhere\n\xff\n/what\n"
)

_PLAY = Form(
    "play {run}",
    numbers="--seed --max-steps",
    named="--set --policy --preset",
    paths="--out --coverage",
)
FORMS: Mapping[str, tuple[Form, ...]] = {
    "train": (
        Form("train tmaze-demo", numbers=_AGENT, named=_NAMES, paths="--run-dir --init-from", fixed=TINY),
        Form(
            "train ppo --env CartPole-v1",
            numbers=_AGENT,
            named=_NAMES,
            paths="--run-dir --init-from",
            fixed=TINY,
        ),
        Form("train uav-small", numbers=_TRAINED, named=_NAMES, paths="--run-dir --init-from", fixed=TINY),
        Form(
            "train mqar --total-steps 64 --batch-rows 2",
            numbers=(
                "--total-steps --parameters --num-blocks --eval-rows --eval-items --suite.length "
                "--suite.num-items --suite.vocab-size --seed --eval-longer"
            ),
            named=_NAMES,
            paths="--run-dir --init-from",
            fixed="--suite.length 32 --suite.num-items 4 --parameters 20000 --eval-rows 2",
        ),
        Form(
            "train ballet --total-steps 64",
            numbers="--total-steps --seed",
            named=_NAMES,
            paths="--run-dir --init-from",
        ),
    ),
    "resume": (
        Form("resume {stopped}", numbers="--num-env-runners --total-steps", named="--engine --address"),
        Form("resume {run} --total-steps 256", numbers="--total-steps"),
    ),
    "eval": (
        Form("eval {run}", numbers="--episodes --seed --max-steps", named="--set", fixed="--episodes 2"),
        Form(
            "eval {team}",
            numbers="--episodes --seed --response-steps",
            named="--set --best-response",
            fixed="--episodes 1",
        ),
    ),
    "plot": (
        Form("plot {run}", named="--metric --against", paths="--out"),
        Form("plot {run} {stopped}", named="--metric", paths="--out"),
    ),
    "play": (
        _PLAY,
        Form("play scrubjay/TMaze-v0", numbers="--seed --max-steps", named="--set", paths="--out"),
        replace(_PLAY, words="play uav", fixed="--max-steps 3"),
        Form(
            "play {team}",
            numbers="--seed --max-steps",
            named="--set --policy",
            paths="--out",
            fixed="--max-steps 3",
        ),
    ),
    "look": (
        Form(
            "look {team}",
            numbers="--episode --max-steps --response-steps",
            named="--set --best-response",
            paths="--out",
            fixed="--max-steps 3",
        ),
        Form(
            "look {run}", numbers="--episode --max-steps", named="--set", paths="--out", fixed="--max-steps 3"
        ),
    ),
    "list": (Form("list"),),
    "export": (
        Form("export {run}", named="--onnx", paths="--out"),
        Form("export {team}"),
    ),
    "demo": (
        Form(
            "demo --out folder",
            numbers="--total-steps --seed --jobs",
            named="--memory",
            paths="--out",
            fixed="--total-steps 64",
        ),
        Form("demo --out {demo} --memory gru --total-steps 64", numbers="--seed"),
    ),
    "compare": (
        Form(
            "compare --out folder --recipes tmaze-demo --memories gru",
            numbers="--seeds --jobs",
            named="--memories --recipes --methods",
            paths="--out",
        ),
        Form("compare --recipes uav-small", numbers="--seeds --jobs", named="--methods", paths="--out"),
        Form(
            "compare --out {compared} --recipes tmaze-demo --memories gru --seeds 0 -- --total-steps 64 "
            "--env.num-envs 4 --segment-length 8 --eval-episodes 2"
        ),
    ),
    "launch": (
        Form(
            "launch tmaze-demo --address http://127.0.0.1:9",
            numbers=_AGENT,
            named="--memory --learner --method --env --set --device --engine --recipe --env.id --address",
            paths="--run-dir",
        ),
        Form(
            "launch --resume x --address http://127.0.0.1:9",
            numbers="--num-env-runners --num-learners --total-steps",
            named="--address",
        ),
    ),
    "sweep": (
        Form("sweep tmaze-demo --param seed=0,0", numbers=_AGENT, named=_NAMES, paths="--out"),
        Form("sweep tmaze-demo --param ppo.gamma=0.9,{word}", numbers="--jobs", named=_NAMES, paths="--out"),
        Form("sweep tmaze-demo --param seed=1,2 --out {sweep}", numbers="--jobs", named="--param"),
    ),
    "inspect": (Form("inspect {model} --text {text}", numbers="--layers --tokens", paths="--text --out"),),
    "longcontext": (
        Form(
            "longcontext perplexity {text} --model {model} --tokens 40 --budget 16 --block 8",
            numbers="--budget --block --seed --tokens --recompute --save-every",
            named=_LONG_NAMES,
            paths="--out",
        ),
        Form(
            (
                "longcontext perplexity {text} --model {model} --tokens 40 --budget 16 --block 8 --out "
                "{longcontext}"
            ),
            numbers="--tokens",
        ),
        Form(
            (
                "longcontext haystack {text} --model {model} --lengths 200 --methods sinks --budget 32 "
                "--depths 0"
            ),
            numbers="--budget --block --seed --lengths --depths --samples",
            named="--methods --device --dtype --title --model --tasks",
            paths="--out",
        ),
        Form(
            ("longcontext speed {text} --model {model} --contexts 32 --repeats 1 --steps 2 --budget 16"),
            numbers="--budget --block --seed --contexts --steps --repeats --full-until",
            named=_LONG_NAMES,
            paths="--out",
        ),
        Form(
            (
                "longcontext agreement {text} --model {model} --prompts 1 --length 32 --new-tokens 2 "
                "--methods sinks --budget 16"
            ),
            numbers="--budget --block --seed --prompts --length --new-tokens",
            named=_LONG_NAMES,
            paths="--out",
        ),
    ),
    "chat": (
        Form(
            "chat --model {model}",
            numbers="--budget --max-tokens --seed --temperature --top-p",
            named="--policy --device --system",
            paths="--model",
            fixed="--max-tokens 3 --budget 64",
            typed=_ASKED,
        ),
    ),
    "agent": (
        Form(
            "agent Hello --model {model}",
            numbers=(
                "--budget --max-tokens --seed --temperature --max-steps --max-seconds --call-bias "
                "--export-templates"
            ),
            named="--tools --policy --planning --language --device --embeddings --namespace --name",
            paths="--memory --knowledge --record --replay --export --model",
            fixed="--max-tokens 3 --tools none --budget 2048",
        ),
        Form(
            "agent --model {model} --memory {bank} --tools none",
            numbers=_LM,
            named="--tools",
            paths="--knowledge",
            fixed="--max-tokens 3",
            typed=b"Hello\n\xff\n",
        ),
        Form("agent Hello --model {model} --replay {replay} --tools auto", fixed="--max-tokens 3"),
        Form("agent {word} --model {word}"),
    ),
    "memory": (
        Form(
            "memory add {bank} 'Ada wrote of engines.'",
            numbers="--importance",
            named="--kind --namespace --trust --supersedes --embeddings --consolidate",
        ),
        Form("memory add {bank} -", typed=b"\xe9t\xe9"),
        Form(
            "memory search {bank} engines",
            numbers="--k",
            named="--kinds --namespace --trusts --at --by --explain --json --embeddings",
        ),
        Form("memory show {bank}", numbers="--last", named="--kind --namespace --json"),
        Form("memory forget {bank} {word}"),
        Form("memory decisions {bank}", numbers="--last", named="--json"),
        Form("memory undo {bank} {word}"),
        Form("memory export {bank}", paths="--out"),
        Form("memory page {bank}", paths="--out", numbers="--most --k", named="--query --embeddings"),
        Form("memory import new.db {records}", named="--kind --namespace --trust --embeddings"),
        Form("memory import {bank} {records} {text} -", typed=b'{"id": 1}\n[1]\n'),
        Form(
            "memory bench {facts} --out folder",
            numbers="--k --window --questions --max-tokens --max-seconds",
            named="--form --arms --model --judge --embeddings --device",
            paths="--out --model",
            fixed="--questions 1 --arms bank full",
        ),
        Form("memory facts made.jsonl", numbers="--seeds --facts --questions", named="--part"),
    ),
    "kagentbench": (
        Form("kagentbench {benchmark}", named="--json"),
        Form("kagentbench {benchmark} {predictions}", named="--json"),
    ),
}


@dataclass
class Case:
    """A command to try, made of a form by one mistake or two."""

    words: list[str]
    typed: bytes = b""
    output: str | None = None
    told: list[str] = field(default_factory=list)
    """What was done to files."""


def make_case(number: int, world: Path, folder: Path) -> Case:
    """Make the mistakes of this number, with files of `world` copied into `folder`."""
    draw = random.Random(number)
    verb = sorted(FORMS)[number % len(FORMS)]
    form = draw.choice(FORMS[verb])
    words = shlex.split(f"{form.words} {form.fixed}")
    case = Case([], form.typed)
    kinds = ["option"] * 5 + ["word", "output", "again", "gone", "more"]
    if any(_FILE.fullmatch(word) for word in words):
        kinds += ["damage"] * 6
    mistakes = draw.choices(kinds, k=draw.choice((1, 1, 2)))
    damaged = False
    for mistake in mistakes:
        if mistake == "option":
            words += _option(form, draw)
        elif mistake == "word":
            words[draw.randrange(len(words))] = draw.choice(WORDS + NUMBERS)
        elif mistake == "output":
            case.output = draw.choice(("closed", "gone", "/dev/full", "/dev/full"))
        elif mistake == "again":
            words.insert(draw.randrange(len(words)), draw.choice(words))
        elif mistake == "gone":
            del words[draw.randrange(len(words))]
        elif mistake == "more":
            words.insert(draw.randrange(1, len(words) + 1), draw.choice(_MORE))
        damaged |= mistake == "damage"
    if not words:
        words = [verb]
    case.words = [_placed(word, world, folder, draw, damaged, case) for word in words]
    if not damaged and draw.random() < 0.1:
        case.typed = draw.choice((b"", b"\xff\xfe", b"\x00", b"{" * 1000, "é\n".encode("latin-1")))
    return case


def furnish(folder: Path) -> None:
    """Put into a folder what stands about in one."""
    folder.mkdir()
    (folder / "folder").mkdir()
    (folder / "note.txt").write_text("A note.\n")
    (folder / "circle").symlink_to("circle")


def _option(form: Form, draw: random.Random) -> list[str]:
    values = {
        "numbers": (NUMBERS, NUMBERS, WORDS),
        "named": (WORDS, WORDS, NUMBERS),
        "paths": (PATHS, PATHS, WORDS),
    }
    options = [(name, kind) for kind in values for name in getattr(form, kind).split()]
    if not options:
        return ["--wings", draw.choice(WORDS)]
    name, kind = draw.choice(options)
    value = draw.choice(draw.choice(values[kind]))
    written = draw.randrange(8)
    if written == 0:
        return [name]
    if written == 1:
        return [f"{name}={value}"]
    if written == 2:
        return [name[:-1], value]
    return [name, value]


def _placed(word: str, world: Path, folder: Path, draw: random.Random, damaged: bool, case: Case) -> str:
    """Return a word with what it stands for: a file, perhaps damaged, or any word."""
    if word == "{word}" or word.endswith(",{word}"):
        return word.replace("{word}", draw.choice(WORDS + NUMBERS + PATHS))
    found = _FILE.fullmatch(word)
    if not found:
        return word
    (source,) = world.glob(f"{found[1]}*")
    target = folder / source.name
    if not target.exists():
        copied(source, target)
        if damaged:
            for _ in range(draw.choice((1, 1, 2))):
                if present := files(target):
                    case.told.append(damage(draw.choice(present), draw))
    return source.name
