"""Methods that misbehave, as edits of the template: what is wrong, (text, what replaces it) ..., what the message says.

The message of `run`; that of `check` is looked for as well, unless the row says why it differs.
"""

from __future__ import annotations

from pathlib import Path

TEMPLATE = (Path(__file__).parents[2] / "methods" / "_template.py").read_text(encoding="utf-8")

QUERIES = "        return l2norm(image + self.edit(torch.cat([image, text], 1)))\n"
IMAGES = '        return l2norm(self.image_fc(l2norm(images["clip"])))\n'
LOSS = '        yield "all", loss, {"contrastive": loss.detach()}\n'
BUILD = "    return Template(config, encoders.clip(config.clip))\n"
INIT = "        self.config = config\n"
INPUTS = '        self.inputs = Inputs(images={"clip": Frozen(clip)}, texts={"clip": Frozen(clip)})\n'
OPTIMIZERS = '        return {"all": adam(self.parameters(), self.config.lr, self.config.weight_decay)}\n'
VARIANTS = '''VARIANTS: dict[str, dict[str, Any]] = {
    "narrow": {"hidden": 64},
    "short": {"train.epochs": 2},
}
'''
TRAIN = 'TRAIN = {"epochs": 50, "batch_size": 32}\n'
TUNE = 'TUNE = {"temperature": {"low": 0.01, "high": 0.5, "log": True}, "lr": {"low": 1e-4, "high": 1e-2, "log": True}}\n'
FIELD = '    hidden: int = Field(1024, ge=8, description="width of the perceptron")\n'
TORCH = "import torch\nfrom torch import Tensor, nn\n"
BUILDING = "def build(config: Config, encoders: Encoders, train: TrainView, state: Mapping[str, Any] | None = None) -> Template:\n"

Row = tuple[str, list[tuple[str, str]], str]


def body(text: str) -> list[tuple[str, str]]:
    """A function more in the class."""
    return [("\n\ndef build(", text.rstrip() + "\n\n\ndef build(")]


def queries(line: str) -> list[tuple[str, str]]:
    """Another end of `encode_queries`."""
    return [(QUERIES, f"        {line}\n")]


def images(line: str) -> list[tuple[str, str]]:
    """Another end of `encode_images`."""
    return [(IMAGES, f"        {line}\n")]


def loss(line: str) -> list[tuple[str, str]]:
    """Another end of `losses`."""
    return [(LOSS, f"        {line}\n")]


def building(line: str) -> list[tuple[str, str]]:
    """Something before the end of `build`."""
    return [(BUILD, f"    {line}\n{BUILD}")]


def optimizers(line: str) -> list[tuple[str, str]]:
    """Another `optimizers`."""
    return [(OPTIMIZERS, f"        {line}\n")]


IN_QUERIES, IN_IMAGES = r"mine.py, line \d+, in encode_queries: ", r"mine.py, line \d+, in encode_images: "
IN_LOSSES, IN_BUILD = r"mine.py, line \d+, in losses: ", r"mine.py, line \d+, in build: "
IN_OPTIMIZERS, TOP = r"mine.py, line \d+, in optimizers: ", r"mine.py.*line \d+"

EMBEDDINGS: list[Row] = [
    ("queries of rank 3", queries("return l2norm(image + text)[:, :, None]"), IN_QUERIES + r".*float32 of shape \(\d, \d+, 1\)"),
    ("queries of rank 1", queries("return image.mean(1)"), IN_QUERIES + r".*of shape \(\d,\)"),
    ("too few queries", queries("return l2norm(image + text)[:2]"), IN_QUERIES + r".*of shape \(2, \d+\) for \d items"),
    ("queries without columns", queries("return image[:, :0]"), IN_QUERIES + r".*of shape \(\d, 0\)"),
    ("queries as a list", queries("return [1.0, 2.0]"), IN_QUERIES + "`encode_queries` returned list"),
    ("queries as None", queries("return None"), IN_QUERIES + "`encode_queries` returned NoneType"),
    ("queries as numpy", queries("return image.detach().numpy()"), IN_QUERIES + "`encode_queries` returned ndarray"),
    ("queries as whole numbers", queries("return (image + text).long()"), IN_QUERIES + ".*torch.int64"),
    ("queries as complex numbers", queries("return (image + text).to(torch.complex64)"), IN_QUERIES + ".*torch.complex64"),
    ("sparse queries", queries("return image.to_sparse()"), IN_QUERIES + ".*layout torch.sparse_coo"),
    ("queries on meta", queries("return image.to('meta')"), IN_QUERIES + ".*on the device meta"),
    ("queries of another width", queries("return torch.cat([image, text], 1)"), IN_QUERIES + r".*D = \d+, those of images D = \d+"),
    ("NaN queries", queries("return l2norm(image + text) * (1 if self.training else float('nan'))"), IN_QUERIES + ".*NaN or infinite values"),
    ("infinite images", images('return self.image_fc(images["clip"]) / self.training'), IN_IMAGES + ".*NaN or infinite values"),
    ("images of rank 3", images('return self.image_fc(images["clip"])[None]'), IN_IMAGES + r".*of shape \(1, \d, \d+\)"),
    ("one image too many", images('return torch.cat([self.image_fc(images["clip"])] * 2)'), IN_IMAGES + ".*of shape"),
    ("images as a dict", images("return {}"), IN_IMAGES + "`encode_images` returned dict"),
    ("images as a generator", images("yield self.image_fc(images['clip'])"), IN_IMAGES + "`encode_images` returned generator"),
    ("a wrong key", images('return images["clap"]'), r"in mine.py, line \d+, in encode_images: KeyError: 'clap'"),
    ("no such attribute", queries("return self.edits(image)"), "in encode_queries: AttributeError"),
    ("shapes that do not fit", queries("return image @ text"), "in encode_queries: RuntimeError"),
    ("a score of another shape", body("    def score(self, queries, gallery):\n        return (queries @ gallery.T)[:, :1]"),
     r"mine.py, line \d+, in score: .*of shape \(\d, 1\)"),
    ("a score as a list", body("    def score(self, queries, gallery):\n        return [1.0]"), "in score: .*returned list"),
    ("a NaN score", body("    def score(self, queries, gallery):\n        return queries @ gallery.T / 0 * 0"),
     "in score: NaN among the scores|depends on the other gallery images"),
    ("a score of whole numbers", body("    def score(self, queries, gallery):\n        return (queries @ gallery.T).int()"),
     "in score: .*torch.int32"),
    ("adapted to another shape", body("    def adapt(self, queries, gallery):\n        return queries[:, 0]"),
     r"mine.py, line \d+, in adapt: .*of shape \(\d,\)"),
    ("adapted to another width", body("    def adapt(self, queries, gallery):\n        return torch.cat([queries, queries], 1)"),
     r"in adapt: .*D = \d+, those of images D = \d+; a dot product"),
    ("adapted to None", body("    def adapt(self, queries, gallery):\n        self.seen = len(gallery)"), "in adapt: .*returned NoneType"),
    ("adapted to NaN", body("    def adapt(self, queries, gallery):\n        return queries / 0 * 0"), "in adapt: .*NaN or infinite"),
    ("a start of epochs that returns text", body("    def start_epoch(self, epoch):\n        return 'fast'"),
     r"mine.py, line \d+, in start_epoch: `start_epoch` returned 'fast' for epoch 0"),
    ("a start of epochs that takes none", body("    def start_epoch(self):\n        return 1.0"), "in start_epoch: TypeError"),
    ("a start of epochs that changes the threads", body("    def start_epoch(self, epoch):\n        torch.set_num_threads(3)"),
     r"in start_epoch: it changed torch's number of threads from \d+ to 3 at the start of epoch 0"),
    ("a start of epochs that is a number", [(INIT, f"{INIT}        self.start_epoch = 1.0\n")], "`start_epoch` of the method is 1.0"),
    ("less stored than read", [(INPUTS, "        from cirbench.types import Pixels\n        self.inputs = Inputs(images={'clip': "
     "Pixels(32, (0, 0, 0), (1, 1, 1), stored=16)})\n")], IN_BUILD + r"inputs.images\['clip'\]: stored is 16; .*below size, 32"),
    ("padding of a colour", [(INPUTS, "        from cirbench.types import Pixels\n        self.inputs = Inputs(images={'clip': "
     "Pixels(32, (0, 0, 0), (1, 1, 1), pad='grey')})\n")], IN_BUILD + r"inputs.images\['clip'\]: pad is 'grey'; .*zero or white"),
    ("weights of another shape", body("    def modality_weights(self, batch):\n        return {'all': torch.ones(2, 2)}"),
     r"in modality_weights: .*of shape \(2, 2\) for 'all'"),
    ("weights as a tensor", body("    def modality_weights(self, batch):\n        return torch.ones(3)"),
     "in modality_weights: .*returned Tensor"),
    ("weights as numbers", body("    def modality_weights(self, batch):\n        return {'all': 0.5}"),
     "in modality_weights: .*returned float for 'all'"),
    ("weights beyond 1", body("    def modality_weights(self, batch):\n        return {'all': 2 * torch.ones(len(batch.words))}"),
     r"in modality_weights: .*outside 0..1"),
]

TRAINING: list[Row] = [
    ("an unknown optimizer", loss('yield "al", loss, {}'), IN_LOSSES + "unknown optimizer 'al'. Did you mean 'all'"),
    ("an optimizer instead of its name", loss("yield self, loss, {}"), IN_LOSSES + "unknown optimizer"),
    ("a float as loss", loss('yield "all", 1.0, {}'), IN_LOSSES + ".*is 1.0; `losses` must yield a scalar tensor"),
    ("None as loss", loss('yield "all", None, {}'), IN_LOSSES + ".*is None; `losses` must yield a scalar tensor"),
    ("a detached loss", loss('yield "all", loss.detach(), {}'), IN_LOSSES + r".*of shape \(\) without a gradient"),
    ("a vector as loss", loss('yield "all", loss[None].repeat(2), {}'), IN_LOSSES + r".*a tensor of shape \(2,\)"),
    ("a NaN loss", loss('yield "all", loss * float("nan"), {}'), IN_LOSSES + "the loss of 'all' is nan"),
    ("an infinite loss", loss('yield "all", loss + float("inf"), {}'), IN_LOSSES + "the loss of 'all' is inf"),
    ("no triple", loss('yield "all"'), IN_LOSSES + r".*must yield \(optimizer name, loss, logs\)"),
    ("a loss that is returned", loss("return loss"), IN_LOSSES + "`losses` returned Tensor"),
    ("losses that return None", loss("pass"), IN_LOSSES + "`losses` returned NoneType"),
    ("losses that yield nothing", loss("yield from ()"), IN_LOSSES + "`losses` yielded nothing"),
    ("a tensor of several numbers in logs", loss('yield "all", loss, {"x": queries}'), IN_LOSSES + ".*hold Tensor under 'x'"),
    ("a text in logs", loss('yield "all", loss, {"x": "high"}'), IN_LOSSES + ".*hold str under 'x'"),
    ("logs that are a number", loss('yield "all", loss, loss.item()'), IN_LOSSES + ".*hold float"),
    ("a loss computed twice from one graph", loss('yield "all", loss, {}\n        yield "all", loss, {}'), "RuntimeError: .*backward"),
    ("no optimizers", optimizers("return None"), IN_OPTIMIZERS + "`optimizers` returned NoneType"),
    ("losses of no optimizer", optimizers("return {}"), IN_LOSSES + "unknown optimizer 'all'"),
    ("an optimizer that is not in a dict", optimizers("return adam(self.parameters(), 1e-3, 0.0)"),
     IN_OPTIMIZERS + "`optimizers` returned Adam"),
    ("a text as optimizer", optimizers('return {"all": "adam"}'), IN_OPTIMIZERS + "`optimizers` holds str under 'all'"),
    ("an optimizer without weights", optimizers('return {"all": adam([], 1e-3, 0.0)}'), r"in mine.py, line \d+, in optimizers: ValueError"),
    ("an optimizer of foreign weights", optimizers('return {"all": adam([nn.Parameter(torch.ones(3))], 1e-3, 0.0)}'),
     IN_OPTIMIZERS + r".*1 weights that are not parameters of the method \(the first has shape \(3,\)\)"),
    ("an optimizer that needs a closure", optimizers('return {"all": torch.optim.LBFGS(self.parameters())}'), "TypeError: .*closure"),
    ("a tensor in extra_state", body("    def extra_state(self):\n        return {'x': torch.ones(2)}"),
     "in extra_state: .*must return a dict of JSON values.*Tensor"),
    ("an object in extra_state", body("    def extra_state(self):\n        return {'x': object()}"), "in extra_state: .*JSON values"),
    ("no dict as extra_state", body("    def extra_state(self):\n        return [1]"), "in extra_state: .*it is list"),
    ("a text in state_dict", body("    def state_dict(self, **_):\n        return {'x': 'y'}"), "in state_dict: .*holds str under 'x'"),
    ("no state_dict", body("    def state_dict(self, **_):\n        return None"), "in state_dict: .*returned NoneType"),
    ("a state_dict that does not load", body("    def state_dict(self, **_):\n        return {'x': torch.ones(2)}"),
     r'in state_dict: .*Unexpected key\(s\) in state_dict: "x"|do not match the method'),
]

BUILDS: list[Row] = [
    ("nothing built", [(BUILD, "    return None\n")], IN_BUILD + "build returned NoneType, which has no inputs"),
    ("a class built", [(BUILD, "    return Template\n")], IN_BUILD + "build returned type, which has no inputs"),
    ("inputs as a dict", [(INPUTS, "        self.inputs = {'clip': Frozen(clip)}\n")], IN_BUILD + "`inputs` of the method is dict"),
    ("inputs as lists", [(INPUTS, "        self.inputs = Inputs([Frozen(clip)], [])\n")], IN_BUILD + "inputs.images is list"),
    ("an encoder as input", [(INPUTS, "        self.inputs = Inputs({'clip': clip}, {})\n")],
     IN_BUILD + r"inputs.images\['clip'\] is \w+; it must be Pixels or Frozen"),
    ("a text as encoder", [(INPUTS, "        self.inputs = Inputs({'clip': Frozen('clip')}, {})\n")], IN_BUILD + ".*holds str"),
    ("hooks that are no functions", [(INIT, INIT + "        self.score = 3\n")], IN_BUILD + "`score` of the method is 3"),
    ("losses without optimizers", [("    def optimizers(", "    def _optimizers(")], IN_LOSSES + ".*no `optimizers`"),
    ("build with other arguments", [(BUILDING, "def build(config):\n")], r"in mine.py, line \d+, in build: TypeError"),
    ("a hook with other arguments", [("def encode_images(self, images: Mapping[str, Tensor])", "def encode_images(self)")],
     r"in mine.py, line \d+, in encode_images: TypeError"),
    ("a text as width", [(BUILD, "    return Template(config, config.clip)\n")], "in mine.py, line .*, in __init__: AttributeError"),
    ("too large a layer", [(INIT, INIT + "        self.big = nn.Linear(10**9, 10**9)\n")], "in __init__: RuntimeError"),
    ("an exception of its own", building("raise type('Odd', (Exception,), {'__str__': lambda s: 1 / 0})()"), "in build: Odd"),
    ("an exception that is no Exception", building("raise type('Odd', (BaseException,), {})('x')"), "in build: Odd: x"),
    ("an endless recursion", building("return build(config, encoders, train, state)"), "in build: RecursionError"),
    ("StopIteration", building("raise StopIteration(3)"), "in build: StopIteration: 3"),
    ("EOFError", building("raise EOFError"), "in build: EOFError"),
    ("KeyboardInterrupt", building("raise KeyboardInterrupt"), "in build: KeyboardInterrupt"),
    ("GeneratorExit", building("raise GeneratorExit"), "in build: GeneratorExit"),
    ("MemoryError", building("raise MemoryError('much')"), "in build: MemoryError: much"),
    ("sys.exit", building("raise SystemExit(0)"), r"in build: it called sys.exit\(0\)"),
    ("a missing file", building("open('/nowhere/x')"), "in build: FileNotFoundError"),
    ("another folder", building("import os; os.chdir('/')"), IN_BUILD + "it changed the working folder from .* to /"),
    ("another default dtype", building("torch.set_default_dtype(torch.float64)"), IN_BUILD + "it changed torch's default dtype"),
    ("another default device", building("torch.set_default_device('cpu:0')"), IN_BUILD + "it changed torch's default device"),
    ("no gradients", building("torch.set_grad_enabled(False)"), IN_BUILD + "it changed torch's gradient mode"),
    ("other threads", building("torch.set_num_threads(torch.get_num_threads() + 1)"), IN_BUILD + "it changed torch's number of threads"),
    ("nondeterminism", building("torch.use_deterministic_algorithms(False)"), IN_BUILD + "it changed torch's deterministic algorithms"),
    ("another precision", building("torch.set_float32_matmul_precision('medium')"), IN_BUILD + "it changed torch's matmul precision"),
    ("another folder in training", loss("import os; os.chdir('/')\n" + LOSS), IN_LOSSES + "it changed the working folder"),
    ("another dtype in encoding", images("torch.set_default_dtype(torch.float64)\n" + IMAGES), IN_IMAGES + "it changed torch's default dtype"),
    ("an exception when imported", [(TORCH, TORCH + "raise ValueError('no')\n")], r"fails when imported: ValueError: no \(mine.py, line \d+"),
    ("an exit when imported", [(TORCH, TORCH + "raise SystemExit(3)\n")], r"fails when imported: it called sys.exit\(3\)"),
    ("a missing module", [(TORCH, TORCH + "import nowhere_at_all\n")], r"fails when imported: ModuleNotFoundError.*\(mine.py, line \d+"),
    ("another folder when imported", [(TORCH, TORCH + "import os\nos.chdir('/')\n")], "changes the working folder .* when imported"),
]

DECLARED: list[Row] = [
    ("VARIANTS as a list", [(VARIANTS, "VARIANTS = [1]\n")], TOP + r": VARIANTS is list \[1\]; VARIANTS must be a dict"),
    ("a variant as a list", [(VARIANTS, "VARIANTS = {'x': ['hidden']}\n")], TOP + r": VARIANTS\['x'\] is list"),
    ("VARIANTS with numbers as names", [(VARIANTS, "VARIANTS = {1: {}}\n")], TOP + ": VARIANTS is dict"),
    ("TRAIN as a list", [(TRAIN, "TRAIN = ['epochs']\n")], TOP + ": TRAIN is list"),
    ("TRAIN with an unknown field", [(TRAIN, "TRAIN = {'epoch': 5}\n")], "train.epoch.*Did you mean 'epochs'"),
    ("TUNE as a text", [(TUNE, "TUNE = 'lr'\n")], TOP + ": TUNE is str"),
    ("DATASETS as None", [("DATASETS = {", "DATASETS = None\nOTHER = {")], TOP + ": DATASETS is NoneType"),
    ("no settings class", [("class Config(Settings):", "class Config:")], r"no class Config\(Settings\)"),
    ("Config that is no class", [("class Config(Settings):", "Config = 3\nclass Other(Settings):")], r"no class Config\(Settings\)"),
    ("a default out of bounds", [("Field(0.07, gt=0", "Field(0, gt=0")], "method.temperature = 0"),
    ("a default that is no value", [(FIELD, FIELD + "    it: Any = object()\n")], "method.it = <object.*cannot be kept in a record"),
    ("no build", [("def build(", "def _build(")], "no function build"),
    ("a syntax error", [(QUERIES, "        return (\n")], TOP + ": not valid Python"),
    ("a zero byte", [(QUERIES, "        return '\0'\n")], "mine.py.*not valid Python|cannot be read"),
]

EVERY = [*EMBEDDINGS, *TRAINING, *BUILDS, *DECLARED]