"""Generator of faulty command lines: valid forms of every command, and random mistakes in them."""

from __future__ import annotations

import random
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..damage import copy, damage, files

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
    """Valid form of a command, with `{name}` for files of the test folder, and its options."""

    words: str
    numbers: str = ""
    """Options that take a number."""
    names: str = ""
    """Options that take a name."""
    paths: str = ""
    """Options that take a path."""
    stdin: bytes = b""
    extra_words: str = ""
    """Arguments that keep the command fast; mistakes come later and may override them."""


_MORE = (*WORDS, "--wings", "--help", "-x", "--set")
_FILE = re.compile(r"\{(?!word)(\w+)\}")
TINY = "--total-steps 64 --env.num-envs 4 --segment-length 8 --eval-episodes 2"
_TRAINED = "--total-steps --segment-length --seed --eval-episodes --checkpoint-seconds"
_AGENT = (
    f"{_TRAINED} --env.num-envs --learner.gamma --ppo.epochs --ppo.learning-rate --ppo.num-minibatches "
    "--policy.memory.dim --memory.dim --ppo.clip-coefficient --ppo.target-kl"
)
_NAMES = "--memory --learner --method --env --set --device --engine --recipe --env.id"
_LM = "--budget --max-tokens --seed --temperature"
_LONG_NAMES = "--methods --device --dtype --title --model"
_INPUT_LINES = (
    b"Hello\n/help\n/policy sinks x\n/policy nine\n/save folder\n/load folder\n/load nowhere\n\xff\n/what\n"
)

_PLAY = Form(
    "play {run}",
    numbers="--seed --max-steps",
    names="--set --policy --preset",
    paths="--out --coverage",
)
FORMS: Mapping[str, tuple[Form, ...]] = {
    "train": (
        Form(
            "train tmaze-demo", numbers=_AGENT, names=_NAMES, paths="--run-dir --init-from", extra_words=TINY
        ),
        Form(
            "train ppo --env CartPole-v1",
            numbers=_AGENT,
            names=_NAMES,
            paths="--run-dir --init-from",
            extra_words=TINY,
        ),
        Form(
            "train uav-small", numbers=_TRAINED, names=_NAMES, paths="--run-dir --init-from", extra_words=TINY
        ),
        Form(
            "train mqar --total-steps 64 --batch-rows 2",
            numbers=(
                "--total-steps --parameters --num-blocks --eval-rows --eval-items --suite.length "
                "--suite.num-items --suite.vocab-size --seed --eval-longer"
            ),
            names=_NAMES,
            paths="--run-dir --init-from",
            extra_words="--suite.length 32 --suite.num-items 4 --parameters 20000 --eval-rows 2",
        ),
        Form(
            "train --config {settings} --run-dir again",
            numbers=_AGENT,
            names=f"{_NAMES} --trust",
            paths="--run-dir --init-from --config",
            extra_words=TINY,
        ),
        Form("train tmaze-demo --config {entries}", numbers=_TRAINED, names="--trust", paths="--config"),
        Form(
            "train ballet --total-steps 64",
            numbers="--total-steps --seed",
            names=_NAMES,
            paths="--run-dir --init-from",
        ),
    ),
    "resume": (
        Form("resume {stopped}", numbers="--num-env-runners --total-steps", names="--engine --address"),
        Form("resume {run} --total-steps 256", numbers="--total-steps"),
    ),
    "eval": (
        Form(
            "eval {run}", numbers="--episodes --seed --max-steps", names="--set", extra_words="--episodes 2"
        ),
        Form(
            "eval {team}",
            numbers="--episodes --seed --response-steps",
            names="--set --best-response",
            extra_words="--episodes 1",
        ),
    ),
    "plot": (
        Form("plot {run}", names="--metric --against", paths="--out"),
        Form("plot {run} {stopped}", names="--metric", paths="--out"),
    ),
    "play": (
        _PLAY,
        Form("play scrubjay/TMaze-v0", numbers="--seed --max-steps", names="--set", paths="--out"),
        replace(_PLAY, words="play uav", extra_words="--max-steps 3"),
        Form(
            "play {team}",
            numbers="--seed --max-steps",
            names="--set --policy",
            paths="--out",
            extra_words="--max-steps 3",
        ),
    ),
    "look": (
        Form(
            "look {team}",
            numbers="--episode --max-steps --response-steps",
            names="--set --best-response",
            paths="--out",
            extra_words="--max-steps 3",
        ),
        Form(
            "look {run}",
            numbers="--episode --max-steps",
            names="--set",
            paths="--out",
            extra_words="--max-steps 3",
        ),
    ),
    "list": (Form("list"),),
    "results": (
        Form("results {run} {stopped}", names="--trust", paths="--csv"),
        Form("results . --csv all.csv", paths="--csv"),
    ),
    "export": (
        Form("export {run}", names="--onnx", paths="--out"),
        Form("export {team}"),
    ),
    "demo": (
        Form(
            "demo --out folder",
            numbers="--total-steps --seed --jobs",
            names="--memory",
            paths="--out",
            extra_words="--total-steps 64",
        ),
        Form("demo --out {demo} --memory gru --total-steps 64", numbers="--seed"),
    ),
    "compare": (
        Form(
            "compare --out folder --recipes tmaze-demo --memories gru",
            numbers="--seeds --jobs",
            names="--memories --recipes --methods",
            paths="--out",
        ),
        Form("compare --recipes uav-small", numbers="--seeds --jobs", names="--methods", paths="--out"),
        Form(
            "compare --out {compared} --recipes tmaze-demo --memories gru --seeds 0 -- --total-steps 64 "
            "--env.num-envs 4 --segment-length 8 --eval-episodes 2"
        ),
    ),
    "launch": (
        Form(
            "launch tmaze-demo --address http://127.0.0.1:9",
            numbers=_AGENT,
            names="--memory --learner --method --env --set --device --engine --recipe --env.id --address",
            paths="--run-dir",
        ),
        Form(
            "launch --resume x --address http://127.0.0.1:9",
            numbers="--num-env-runners --num-learners --total-steps",
            names="--address",
        ),
    ),
    "sweep": (
        Form("sweep tmaze-demo --param seed=0,0", numbers=_AGENT, names=_NAMES, paths="--out"),
        Form("sweep tmaze-demo --param ppo.gamma=0.9,{word}", numbers="--jobs", names=_NAMES, paths="--out"),
        Form("sweep tmaze-demo --param seed=1,2 --out {sweep}", numbers="--jobs", names="--param"),
    ),
    "inspect": (Form("inspect {model} --text {text}", numbers="--layers --tokens", paths="--text --out"),),
    "longcontext": (
        Form(
            "longcontext perplexity {text} --model {model} --tokens 40 --budget 16 --block 8",
            numbers="--budget --block --seed --tokens --recompute --save-every",
            names=_LONG_NAMES,
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
            names="--methods --device --dtype --title --model --tasks",
            paths="--out",
        ),
        Form(
            ("longcontext speed {text} --model {model} --contexts 32 --repeats 1 --steps 2 --budget 16"),
            numbers="--budget --block --seed --contexts --steps --repeats --full-until",
            names=_LONG_NAMES,
            paths="--out",
        ),
        Form(
            (
                "longcontext questions {text} --model {model} --methods sinks --shares 0.3 --length 700 "
                "--samples 1 --perplexity 16"
            ),
            numbers="--block --seed --length --samples --shares --perplexity",
            names="--methods --device --dtype --title --model --times",
            paths="--out",
        ),
        Form(
            (
                "longcontext agreement {text} --model {model} --prompts 1 --length 32 --new-tokens 2 "
                "--methods sinks --budget 16"
            ),
            numbers="--budget --block --seed --prompts --length --new-tokens",
            names=_LONG_NAMES,
            paths="--out",
        ),
    ),
    "chat": (
        Form(
            "chat --model {model}",
            numbers="--budget --max-tokens --seed --temperature --top-p",
            names="--policy --device --system",
            paths="--model",
            extra_words="--max-tokens 3 --budget 64",
            stdin=_INPUT_LINES,
        ),
    ),
    "agent": (
        Form(
            "agent Hello --model {model}",
            numbers=(
                "--budget --max-tokens --seed --temperature --max-steps --max-seconds --call-bias "
                "--export-templates"
            ),
            names="--tools --policy --planning --language --device --embeddings --namespace --name",
            paths="--memory --knowledge --record --replay --export --model",
            extra_words="--max-tokens 3 --tools none --budget 2048",
        ),
        Form(
            "agent --model {model} --memory {bank} --tools none",
            numbers=_LM,
            names="--tools",
            paths="--knowledge",
            extra_words="--max-tokens 3",
            stdin=b"Hello\n\xff\n",
        ),
        Form("agent Hello --model {model} --replay {replay} --tools auto", extra_words="--max-tokens 3"),
        Form("agent {word} --model {word}"),
    ),
    "memory": (
        Form(
            "memory add {bank} 'Ada wrote of engines.'",
            numbers="--importance --ttl",
            names="--kind --namespace --trust --supersedes --embeddings --consolidate",
        ),
        Form("memory add {bank} -", stdin=b"\xe9t\xe9"),
        Form(
            "memory search {bank} engines",
            numbers="--k --min-relevance --half-life",
            names="--kinds --namespace --trusts --at --by --explain --json --embeddings --foreign --where "
            "--since --until",
        ),
        Form("memory show {bank}", numbers="--last", names="--kind --namespace --json --at"),
        Form("memory namespaces {bank}", names="--namespace --json"),
        Form("memory update {bank} {word} {word}", names="--trust --embeddings"),
        Form("memory supersede {bank} {word} {word}", names="--undo"),
        Form("memory forget {bank} {word}"),
        Form(
            "memory forget {bank} --kinds task",
            names="--namespace --kinds --where --since --until --yes --everything",
        ),
        Form("memory decisions {bank}", numbers="--last", names="--json"),
        Form("memory undo {bank} {word}"),
        Form("memory export {bank}", paths="--out", names="--namespace --everything"),
        Form("memory page {bank}", paths="--out", numbers="--max-records --k", names="--query --embeddings"),
        Form("memory import new.db {records}", names="--kind --namespace --trust --embeddings --own"),
        Form("memory import {bank} {records} {text} -", stdin=b'{"id": 1}\n[1]\n'),
        Form(
            "memory bench {facts} --out folder",
            numbers="--k --window --questions --max-tokens --max-seconds",
            names="--format --arms --model --judge --embeddings --device",
            paths="--out --model",
            extra_words="--questions 1 --arms bank full",
        ),
        Form("memory facts made.jsonl", numbers="--seeds --facts --questions", names="--part"),
    ),
    "kagentbench": (
        Form("kagentbench {benchmark}", names="--json"),
        Form("kagentbench {benchmark} {predictions}", names="--json"),
    ),
}


@dataclass
class Case:
    """Command to try: a form with one or two mistakes."""

    words: list[str]
    stdin: bytes = b""
    output: str | None = None
    damages: list[str] = field(default_factory=list)
    """Descriptions of damage to files."""


def make_case(number: int, world: Path, folder: Path) -> Case:
    """Return the case of this number, with files of `world` copied into `folder`."""
    draw = random.Random(number)
    verb = sorted(FORMS)[number % len(FORMS)]
    form = draw.choice(FORMS[verb])
    words = shlex.split(f"{form.words} {form.extra_words}")
    case = Case([], form.stdin)
    kinds = ["option"] * 5 + ["word", "output", "again", "gone", "more"]
    if any(_FILE.fullmatch(word) for word in words):
        kinds += ["damage"] * 6
    mistakes = draw.choices(kinds, k=draw.choice((1, 1, 2)))
    has_damage = False
    for mistake in mistakes:
        words = words or [verb]  # the mistake before may have removed the only word
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
        has_damage |= mistake == "damage"
    if not words:
        words = [verb]
    case.words = [_place(word, world, folder, draw, has_damage, case) for word in words]
    if not has_damage and draw.random() < 0.1:
        case.stdin = draw.choice((b"", b"\xff\xfe", b"\x00", b"{" * 1000, "é\n".encode("latin-1")))
    return case


def furnish(folder: Path) -> None:
    """Create typical files in a folder."""
    folder.mkdir()
    (folder / "folder").mkdir()
    (folder / "note.txt").write_text("A note.\n")
    (folder / "circle").symlink_to("circle")


def _option(form: Form, draw: random.Random) -> list[str]:
    values = {
        "numbers": (NUMBERS, NUMBERS, WORDS),
        "names": (WORDS, WORDS, NUMBERS),
        "paths": (PATHS, PATHS, WORDS),
    }
    options = [(name, kind) for kind in values for name in getattr(form, kind).split()]
    if not options:
        return ["--wings", draw.choice(WORDS)]
    name, kind = draw.choice(options)
    value = draw.choice(draw.choice(values[kind]))
    text = draw.randrange(8)
    if text == 0:
        return [name]
    if text == 1:
        return [f"{name}={value}"]
    if text == 2:
        return [name[:-1], value]
    return [name, value]


def _place(word: str, world: Path, folder: Path, draw: random.Random, has_damage: bool, case: Case) -> str:
    """Replace a placeholder word by a file, perhaps damaged, or by a random word."""
    if word == "{word}" or word.endswith(",{word}"):
        return word.replace("{word}", draw.choice(WORDS + NUMBERS + PATHS))
    matches = _FILE.fullmatch(word)
    if not matches:
        return word
    (source,) = world.glob(f"{matches[1]}*")
    target = folder / source.name
    if not target.exists():
        copy(source, target)
        if has_damage:
            for _ in range(draw.choice((1, 1, 2))):
                if present := files(target):
                    case.damages.append(damage(draw.choice(present), draw))
    return source.name
