"""The table of borders: each deserializer, parser and loader of foreign data, with its strict setting.

`tests/test_borders.py` fails if a module calls one of these names without a row that lists the module, or
without the arguments that the row requires. Names are patterns of full names: `pickle*` is every name of the
modules whose names begin so, and `?.` is the method of an object of unknown origin. The first row with a
matching name counts.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, eq=False)
class Border:
    """Names that read foreign data, the modules that may use them, and what makes the use safe."""

    names: str
    """Patterns of full names, separated by spaces."""
    setting: str
    """Strict setting, or the reason why the data is not foreign."""
    modules: str = ""
    """Modules that may use the names, from the root, separated by spaces; a folder ends with a slash."""
    arguments: Mapping[str, str | None] = field(default_factory=dict)
    """Arguments that each call must have: by name, and by position as "0"; None allows any value."""
    literal: bool = False
    """True if calls whose first argument is written in the module need no row."""


NOWHERE = (
    Border("dill* cloudpickle* joblib* marshal* shelve* copyreg* _pickle*", "they run code of the data"),
    Border("pandas.read_* numpy.load* numpy.memmap numpy.fromfile numpy.genfromtxt numpy.lib*", "not needed"),
    Border(
        "torch.jit* torch.hub* torch.package* torch.serialization* torch.utils.model_zoo*", "they run code"
    ),
    Border("torch.distributed.checkpoint* torch.UntypedStorage* torch.utils.cpp_extension*", "they run code"),
    Border(
        "builtins.eval builtins.exec builtins.compile code.* codeop* runpy* imp.* zipimport*", "they run code"
    ),
    Border("lxml* bs4* html.parser* xml* html5lib* defusedxml*", "trafilatura reads HTML; nothing reads XML"),
    Border("mako* chameleon*", "not needed"),
    Border("gzip* bz2* shutil.unpack_archive ?.extractall", "not needed"),
    Border("csv.reader csv.DictReader configparser* plistlib* h5py* msgpack*", "not needed"),
    Border("PIL.Image.open PIL.ImageFile* matplotlib.image* ?.imread", "pictures are written, never read"),
    Border("os.system os.popen os.exec* os.spawn* os.posix_spawn* pty*", "no shell"),
    Border("datasets* requests* httpx* urllib3*", "not needed"),
    Border("ctypes* cffi* codecs.decode codecs.lookup codecs.open dbm*", "not needed"),
    Border("[!?]*.__dict__* inspect.getattr_static", "they hide names from this table"),
    Border("pandas.io* pandas.HDFStore pandas.ExcelFile scipy.io* tensorflow* keras* cv2*", "not needed"),
    Border("cbor2* bson* avro* google.protobuf* flatbuffers*", "not needed"),
    Border("peft* diffusers* sentence_transformers*", "not needed"),
    Border("*.from_checkpoint", "checkpoints of RLlib are pickles"),
    Border("?.load_extension ?.enable_load_extension", "extensions of SQLite run code"),
    Border("?.read_pickle ?.Unpickler ?.load_from_checkpoint", "they run code"),
)
"""Names that no module uses."""

CODE = (
    Border(
        "pickle*",
        "foreign bytes are unpickled only with trust=True; other uses pickle and unpickle their own objects",
        "agents/rllib/algorithm.py experiments/runs/checkpoint.py experiments/runs/engine.py "
        "memory/contract/check.py memory/contract/laws.py",
    ),
    Border(
        "torch.load",
        "tensors and plain data",
        "agents/conformance.py experiments/runs/checkpoint.py",
        {"weights_only": "True"},
    ),
    Border(
        "torch.from_file", "a file that the same object has just written", "memory/context/policies/store.py"
    ),
    Border(
        "torch.export.load onnx.reference*",
        "a file that the same function has just written",
        "experiments/export.py",
    ),
    Border(
        "importlib.import_module builtins.__import__ importlib.__import__ pkgutil.resolve_name",
        "names in fixed tables, or names that the user gave in an option, in Python or with --trust",
        "agents/langchain/serializer.py agents/rl/encoders/choice.py agents/tools/extraction.py docs/ "
        "experiments/bench/machine_code.py experiments/commands/ experiments/recipes/__init__.py "
        "experiments/runs/cluster.py experiments/scoreboard/environments.py "
        "experiments/tasks/environments.py experiments/tasks/teams.py "
        "experiments/tasks/wrappers.py experiments/user_modules.py kernels/dispatch.py kernels/search/op.py "
        "memory/config_registry.py memory/contract/stepper.py src/scrubjay/_lazy.py",
    ),
    Border(
        "*.__getattribute__",
        "the values in a namespace of a template, which are measured",
        "memory/context/foreign/meter.py",
    ),
    Border(
        "sys.modules*",
        "only to see what is imported; nothing is called by name",
        "agents/language/namespaces.py experiments/cli/ experiments/tasks/faults.py "
        "experiments/user_modules.py src/scrubjay/_lazy.py",
    ),
    Border(
        "importlib.util.spec_from* importlib.util.module_from* importlib.machinery.Source* importlib.reload",
        "not needed",
    ),
    Border(
        "builtins.getattr(torch)",
        "the name is checked against a table",
        "agents/chat/ experiments/lm/",
    ),
    Border(
        "builtins.getattr([!?]*) operator.methodcaller",
        "names of a fixed set",
        "agents/tools/holidays.py docs/names.py experiments/commands/main.py "
        "experiments/quality/context_peers.py experiments/quality/kvpress_answers.py "
        "experiments/tasks/wrappers.py",
    ),
    Border(
        "gymnasium.make gymnasium.make_vec gymnasium.spec gymnasium.envs.registration.load_env_creator",
        "ids without a module, or of a module that the user trusts",
        "docs/ experiments/bench/ experiments/scoreboard/environments.py experiments/tasks/environments.py",
    ),
    Border(
        "multiprocessing multiprocessing.active_children multiprocessing.current_process",
        "no data passes",
        "experiments/",
    ),
    Border(
        "gymnasium.vector.AsyncVectorEnv multiprocessing* torch.multiprocessing* "
        "concurrent.futures.ProcessPoolExecutor*",
        "pickles pass between processes of one run",
        "experiments/bench/__init__.py experiments/bench/soak/ experiments/tasks/environments.py",
    ),
    Border(
        "ray.cloudpickle* ray.tune*",
        "the state of a sweep is a pickle: continued only with --trust",
        "experiments/launch/sweep.py",
    ),
    Border(
        "ray ray.get ray.put ray.init ray.remote ray.wait",
        "pickles pass between processes of one cluster, which a token protects",
        "agents/rllib/ experiments/bench/elsewhere/ experiments/bench/ray.py experiments/ray_store.py "
        "experiments/runs/",
    ),
    Border(
        "subprocess* asyncio.create_subprocess*",
        "a list of arguments, no shell",
        "agents/tools/processes.py experiments/bench/ experiments/launch/parallel.py "
        "experiments/measurements.py kernels/launch.py memory/context/elsewhere/stores.py "
        "memory/context/foreign/trial.py",
    ),
)
"""Names that can run code."""

MODELS = (
    Border(
        "transformers.AutoTokenizer.from_pretrained transformers.AutoConfig.from_pretrained",
        "local files, no code of the folder",
        "memory/context/ experiments/quality/kvpress_answers.py",
        {"local_files_only": "True", "trust_remote_code": "False"},
    ),
    Border(
        "transformers.AutoModelForCausalLM.from_pretrained",
        "local files, no code of the folder, no compiled kernels from the Hub",
        "memory/context/ experiments/quality/kvpress_answers.py",
        {"local_files_only": "True", "trust_remote_code": "False", "use_kernels": "False"},
    ),
    Border(
        "transformers.*.from_config",
        "no code of the folder",
        "memory/context/",
        {"trust_remote_code": "False"},
    ),
    Border("attention_sinks.*", "a benchmark of a published model", "experiments/quality/context_peers.py"),
    Border(
        "tokenizers* ?.from_file ?.from_str ?.from_buffer",
        "files of an installed package",
        "agents/embeddings/minilm.py",
    ),
    Border("?._from_pretrained", "safetensors only, of the size in the config", "memory/sequence.py"),
    Border("huggingface_hub.hf_hub_download", "one safetensors file", "memory/sequence.py"),
    Border("huggingface_hub.snapshot_download huggingface_hub.load* transformers.pipeline", "not needed"),
    Border(
        "gguf gguf.get_tensor_name_map", "a table of names, which reads no file", "memory/context/models.py"
    ),
    Border("gguf* sentencepiece*", "only transformers reads them"),
    Border(
        "jinja2*",
        "a sandbox of Jinja with limits on steps and sizes",
        "memory/context/foreign/",
    ),
    Border("?.apply_chat_template", "memory/context/foreign renders templates within its limits"),
    Border(
        "safetensors.safe_open safetensors.torch.load_file safetensors.torch.load",
        "shapes are compared with the config before the tensors are read",
        "agents/embeddings/minilm.py agents/rl/pretrained.py experiments/runs/checkpoint.py "
        "memory/context/ memory/contract/laws.py memory/sequence.py",
    ),
    Border(
        "*.from_pretrained",
        "policies and sequence models of this project, which check sizes and shapes first",
        "agents/conformance.py experiments/export.py memory/sequence.py",
    ),
)
"""Readers of models."""

TEXTS = (
    Border(
        "yaml.load",
        "plain data of YAML 1.2, without aliases and double entries",
        "experiments/strict_yaml.py",
        {"1": "_StrictLoader"},
    ),
    Border(
        "yaml.*oad* yaml.scan yaml.parse yaml.compose*", "the strict loader", "experiments/strict_yaml.py"
    ),
    Border(
        "tomllib*",
        "files of the package and of this repository",
        "agents/language/prompts/__init__.py experiments/bench/installation.py experiments/lm/tuning.py",
    ),
    Border("ruamel* toml* tomli*", "tomllib and yaml read them"),
    Border(
        "json.load json.loads json.JSONDecoder* json.decoder.JSONDecoder*",
        "errors of form and of depth are errors of the reader",
        "agents/chat/answer_format.py agents/chat/conversations.py agents/kwai/planner.py agents/langchain/ "
        "agents/language/text.py agents/rl/pretrained.py agents/tools/ docs/ experiments/answers/ "
        "experiments/quality/kvpress_answers.py experiments/quality/rows.py "
        "experiments/bench/ experiments/cli/cache.py experiments/files.py experiments/launch/search.py "
        "experiments/lm/ experiments/measurements.py memory/bank/ memory/context/",
    ),
    Border(
        "json_repair*",
        "texts of a model, of limited length",
        "agents/kwai/planner.py experiments/lm/prompt_formats.py",
    ),
    Border("orjson* ujson* simplejson* json5*", "json reads it"),
    Border(
        "ormsgpack.unpackb",
        "a hook sees each extension before it is constructed",
        "agents/langchain/serializer.py",
        {"ext_hook": "check"},
    ),
    Border(
        "langgraph.checkpoint.serde*",
        "only types of a list are constructed",
        "agents/langchain/serializer.py agents/langchain/checkpointer.py",
    ),
    Border(
        "sqlite3.connect sqlite3.Connection sqlite3.dbapi2*",
        "one class opens banks and checkpoints; other files are written by the same command",
        "memory/bank/file/ experiments/answers/views.py experiments/bench/",
    ),
    Border(
        "zipfile*",
        "the archive of torch, uncompressed",
        "experiments/runs/checkpoint.py",
    ),
    Border(
        "tarfile* lzma* zlib.decompress*",
        "sizes are limited while the data is unpacked",
        "agents/tools/web.py experiments/lm/texts.py",
    ),
    Border("usearch*", "a checksum is compared first", "memory/bank/search/segments.py"),
    Border(
        "pyarrow.parquet* pyarrow.*read* pyarrow.ipc* pyarrow.csv* pyarrow.json*",
        "plain columns of a data set",
        "experiments/answers/agentbench.py",
    ),
    Border("struct.*unpack*", "numbers of a fixed form", "experiments/lm/texts.py memory/bank/"),
    Border(
        "trafilatura* ddgs*",
        "in a child process with limits on CPU time and memory",
        "agents/tools/extraction.py",
    ),
    Border(
        "http* aiohttp* socket.socket socket.create_connection urllib.request*",
        "public addresses only, or an address that the user gave",
        "agents/tools/web.py experiments/commands/agent.py experiments/launch/ray_job.py "
        "experiments/runs/cluster.py",
    ),
    Border("email* mailbox* imaplib* ftplib* telnetlib*", "not needed"),
    Border(
        "simpleeval* ast.parse ast.literal_eval",
        "a table of operators and functions; docs read this repository",
        "agents/tools/calculator.py docs/",
    ),
    Border("dateutil.parser* packaging.*", "requirements of this package", "experiments/commands/doctor.py"),
    Border(
        "re.compile re.match re.search re.fullmatch re.findall re.finditer re.split re.sub re.subn regex*",
        "patterns of the module, also in a table; other words in them are escaped",
        "docs/ experiments/cli/arguments.py experiments/lm/kagentbench.py experiments/strict_yaml.py "
        "memory/bank/file/words.py memory/context/quotes.py",
        literal=True,
    ),
    Border(
        "matplotlib.mathtext* matplotlib.texmanager*",
        "texts are drawn with the dollar sign escaped",
    ),
    Border("nbformat*", "notebooks are written, never read", "docs/"),
)
"""Readers of texts, tables and archives."""

BORDERS = (*NOWHERE, *CODE, *MODELS, *TEXTS)
