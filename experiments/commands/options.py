"""Table of the options that several commands share. A command lists those that have an effect in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, UseAppendAction, arg

from scrubjay.agents.embeddings import EmbeddingsName
from scrubjay.experiments.cli.failures import UsageError, bad_input
from scrubjay.experiments.runs.cluster import RayOptions, connect, describe_cluster

LoggerName = Literal["mlflow", "wandb"]

# Runs
Trust = Annotated[
    bool,
    arg(
        help="Trust the run: allow its custom environment and the pickled data in its files to execute code, "
        "and lift the limits on its memory, CPU time, files and environments."
    ),
]
Checkpoint = Annotated[
    str,
    arg(
        metavar="latest|best|step_N",
        help="Checkpoint of the run: the latest, the best by the evaluations of --eval-every, or one of the "
        "last steps, such as step_1000.",
    ),
]
Quiet = Annotated[bool, arg(help="Hide the progress display.")]
Logger = Annotated[
    LoggerName | None,
    arg(
        help="Logging service that also receives the metrics of every update. If the service already has a "
        "run for this directory, that run is continued."
    ),
]
EnvSettings = Annotated[
    UseAppendAction[tuple[str, ...]],
    arg(metavar="NAME=VALUE", help="Setting of the environment to change, such as corridor_length=50."),
]
MaxSteps = Annotated[int, arg(help="Maximum steps of the episode.")]
Jobs = Annotated[int, arg(help="Number of parallel processes.")]
ResponseSteps = Annotated[int, arg(help="Environment steps per agent for --best-response.")]

# Language models
ContextPolicy = Annotated[
    str,
    arg(help="Context policy of a local model. It decides which tokens of a long text the cache retains."),
]
Budget = Annotated[
    int | None,
    arg(
        help="Number of tokens that the cache retains, for context policies with a budget. Default: the "
        "model's window, at most 8,192."
    ),
]
MaxTokens = Annotated[
    int | None,
    arg(help="Maximum tokens of an answer. Default: 512 for a local model, otherwise set by the provider."),
]
Device = Annotated[str, arg(help="Device of a local model, such as cpu or cuda.")]

# Memory banks
BankFile = Annotated[Positional[Path], arg(help="Memory bank file.")]
NewBankFile = Annotated[Positional[Path], arg(help="Memory bank file; created if missing.")]
Embeddings = Annotated[
    EmbeddingsName | None,
    arg(
        help="Embedding model for semantic search: minilm for English, e5 for a hundred languages. A memory "
        "bank uses one embedding model. Default: search by words only."
    ),
]
SameEmbeddings = Annotated[
    EmbeddingsName | None,
    arg(help="Embedding model for semantic search; must be the one with which the memory was written."),
]
Foreign = Annotated[
    bool,
    arg(
        help="The memory bank is from someone else. All its records count as texts of tools, whatever the "
        "file says: the agent asks for approval before it acts on them. Without this option the trust "
        "levels in the file count."
    ),
]
AsJson = Annotated[bool, arg(help="Print one JSON object per record.")]
RecordKind = Literal["knowledge", "conversation", "task", "episode"]
Author = Literal["user", "agent", "tool"]


@dataclass(frozen=True, kw_only=True)
class RaySizes:
    """Processes of a run on Ray."""

    num_env_runners: int | None = None
    """Number of Ray processes that run the environments; default: 2. If 0, the driver runs them."""
    num_learners: int | None = None
    """Number of data-parallel learner processes; default: 0. If 0, the driver process trains the model."""

    def ray_options(self, address: str | None = None) -> RayOptions:
        """Return the options of a run on Ray. Raises UsageError on negative numbers."""
        sizes = {"num_env_runners": self.num_env_runners, "num_learners": self.num_learners}
        with bad_input():
            return RayOptions(**{name: n for name, n in sizes.items() if n is not None}, address=address)


@dataclass(frozen=True, kw_only=True)
class EngineOptions(RaySizes):
    """Engine that trains a run: this process, or Ray."""

    engine: Literal["local", "ray"] = "local"
    """Engine of the run: this process, or Ray on this machine or a cluster. The memory limit of untrusted
    runs does not hold for the processes of Ray."""
    address: str | None = None
    """Address of the Ray cluster's head as host:port; default: RAY_ADDRESS if set, else this machine."""

    def ray(self) -> RayOptions | None:
        """Return the options of a run on Ray, or None for the local engine.

        Raises UsageError on an invalid flag.
        """
        if self.engine == "ray":
            return self.ray_options(self.address)
        for name in ("num_env_runners", "num_learners", "address"):
            if getattr(self, name) is not None:
                raise UsageError(f"--{name.replace('_', '-')} requires --engine ray")
        return None


def check_latest(checkpoint: str, reason: str) -> None:
    """Raise ValueError with `reason` if an option names another checkpoint than the latest."""
    if checkpoint != "latest":
        raise ValueError(f"--checkpoint {checkpoint}: {reason}; omit the option")


RESPONSES_START = "--best-response starts from the state of the learner at the latest checkpoint"
"""Reason why `--best-response` supports only the latest checkpoint."""


def join_cluster(ray: RayOptions | None) -> None:
    """Connect to the Ray cluster and print a description of it; do nothing if `ray` is None."""
    if ray is not None:
        connect(ray)
        print(describe_cluster(), flush=True)
