"""No function draws from a global random state: a check by syntax tree of mmcon, mmcon_views and the recipes.

A call is found by its full name, whatever alias it was imported under. A call that is given its own generator passes.
Two kinds of randomness are outside of the check, since the run seeds them: the default initialization of layers, and
dropout modules, whose draws are seeded from (seed, step, rank) before each step.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = [path for folder in ("mmcon", "views", "recipes") for path in sorted((ROOT / folder).rglob("*.py"))]

# Functions of torch that draw from the default generator, unless they are given another one.
TORCH_DRAWS = {
    *("rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like", "normal", "bernoulli"),
    *("multinomial", "poisson", "binomial", "dropout"),
}
# Methods of tensors that do, and the functions of torch.nn.init, which have the same endings.
IN_PLACE = re.compile(r"(^|_)(uniform|normal|random|bernoulli|exponential|cauchy|geometric|orthogonal|sparse)_$")
# Functions of torch that set, read or replace the state of the default generators.
TORCH_STATE = re.compile(
    r"^torch\.default_generator|^torch\.((cuda\.)?random\.|cuda\.)?((manual_)?seed(_all)?|initial_seed|\w*rng\w*)$"
)
# What takes an explicit seed and has a state of its own.
OWN_STATE = {
    "random.Random", "numpy.random.default_rng", "numpy.random.Generator", "numpy.random.RandomState",
    "numpy.random.SeedSequence", "numpy.random.PCG64", "numpy.random.Philox",
}  # fmt: skip

# Uses that are allowed, by reason: the file and the names.
INITIAL = "the initial weights of a model: the run seeds the default generator before the model is built"
RESTORED = "the states are saved and restored, so that nothing outside of the block sees a change"
EXEMPT = {
    "the one place that seeds models, from a key": [("mmcon/training/seeds.py", ["torch.manual_seed"])],
    INITIAL: [
        ("mmcon/evaluation/linear_classifier.py", ["torch.nn.init.normal_"]),
        ("mmcon/models/small_images.py", ["torch.nn.init.kaiming_normal_"]),
        ("mmcon/models/resnet_tiny.py", ["torch.nn.init.kaiming_normal_"]),
        ("mmcon/models/text.py", ["torch.nn.init.normal_"]),
    ],
    RESTORED: [
        ("mmcon/views/adapters.py", [
            "torch.get_rng_state", "torch.set_rng_state", "torch.default_generator.manual_seed",
            "numpy.random.get_state", "numpy.random.set_state", "numpy.random.seed",
            "random.getstate", "random.setstate", "random.seed",
        ]),
        ("mmcon/training/gradient_caching.py", [
            "torch.get_rng_state", "torch.set_rng_state", "torch.random.fork_rng",
            "torch.cuda.get_rng_state", "torch.cuda.set_rng_state",
        ]),
        ("mmcon/testing/encoder_laws.py", ["torch.random.fork_rng"]),
    ],
    "the law that the states do not change reads them": [
        ("mmcon/testing/laws.py", ["torch.get_rng_state", "numpy.random.get_state", "random.getstate"]),
    ],
}  # fmt: skip
ALLOWED = {(file, name) for uses in EXEMPT.values() for file, names in uses for name in names}


def aliases_of(tree):
    """The full name behind each name that a file imports."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.partition(".")[0]
                names[alias.asname or first] = alias.name if alias.asname else first
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return names


def full_name(node, aliases):
    """`np.random.rand` as numpy.random.rand; an attribute of anything else as `.name`."""
    attributes = []
    while isinstance(node, ast.Attribute):
        attributes.insert(0, node.attr)
        node = node.value
    if isinstance(node, ast.Name) and (node.id in aliases or not attributes):
        return ".".join([aliases.get(node.id, node.id), *attributes])
    return "." + attributes[-1] if attributes else ""


def draws_globally(name, call):
    """Whether a use of a name, with its call if it is called, draws from a global state or touches one."""
    keywords = {k.arg: k.value for k in call.keywords} if call else {}
    generator = keywords.get("generator")
    own = generator is not None and not (isinstance(generator, ast.Constant) and generator.value is None)
    if name in OWN_STATE:
        return call is not None and not call.args and not call.keywords
    if name.startswith(("random.", "numpy.random.")) or TORCH_STATE.match(name):
        return True
    module, _, last = name.rpartition(".")
    if module in ("torch", "torch.nn.functional") and (last in TORCH_DRAWS or IN_PLACE.search(last)):
        return not own
    if (name.startswith(".") or module == "torch.nn.init") and IN_PLACE.search(last):
        return not own
    if name == ".multinomial" or (name == ".bernoulli" and call is not None and not call.args):
        return not own  # Keys.bernoulli has the name of the draw as an argument
    return False


def global_draws(source):
    """Every use of a global random state in a source text, as (line, full name)."""
    tree = ast.parse(source)
    aliases = aliases_of(tree)
    calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name) and id(node) not in inner:
            name = full_name(node, aliases)
            if draws_globally(name, calls.get(id(node))):
                found.append((node.lineno, name))
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_global_random_state(path):
    module = str(path.relative_to(ROOT))
    found = [(line, name) for line, name in global_draws(path.read_text()) if (module, name) not in ALLOWED]
    assert not found, f"{module} uses a global random state: {found}"


def test_every_exemption_is_used():
    used = {(str(path.relative_to(ROOT)), name) for path in FILES for _, name in global_draws(path.read_text())}
    assert not ALLOWED - used


@pytest.mark.parametrize("line", [
    "import torch; torch.rand(3)",
    "import torch; torch.randn(3, generator=None)",
    "import torch as t; t.randint(0, 3, (2,))",
    "from torch import randperm; randperm(3)",
    "from torch import rand as uniform; uniform(3)",
    "import torch; torch.bernoulli(p)",
    "import torch; torch.normal(0.0, 1.0, (3,))",
    "import torch; torch.multinomial(p, 2)",
    "import torch; torch.empty(3).uniform_()",
    "x.normal_(0, 1)",
    "x.random_()",
    "x.bernoulli_(0.5)",
    "x.exponential_()",
    "x.bernoulli()",
    "x.multinomial(2)",
    "from torch import nn; nn.init.trunc_normal_(w)",
    "from torch import nn; nn.init.kaiming_uniform_(w)",
    "from torch.nn.functional import dropout; dropout(x)",
    "import torch.nn.functional as F; F.dropout(x, 0.5)",
    "import torch; map(torch.rand, sizes)",
    "import torch; torch.manual_seed(0)",
    "import torch; torch.seed()",
    "import torch; torch.default_generator.manual_seed(0)",
    "import torch; torch.cuda.manual_seed_all(0)",
    "import torch; torch.random.fork_rng()",
    "import torch; torch.set_rng_state(s)",
    "import numpy as np; np.random.rand(3)",
    "import numpy as np; np.random.seed(0)",
    "from numpy import random; random.shuffle(x)",
    "from numpy.random import permutation; permutation(3)",
    "import numpy as np; np.random.default_rng()",
    "import random; random.random()",
    "import random as python_random; python_random.shuffle(x)",
    "from random import choice; choice(x)",
    "import random; random.seed(0)",
    "import random; random.Random()",
])  # fmt: skip
def test_the_check_finds(line):
    assert global_draws(line), line


@pytest.mark.parametrize("line", [
    "import torch; torch.rand(3, generator=g)",
    "import torch; torch.empty(3).uniform_(0, 1, generator=g)",
    "import torch; g = torch.Generator().manual_seed(0)",
    "keys.uniform('strength', 0, 1)",
    "keys.bernoulli('applied', 0.5)",
    "keys.normal('noise')",
    "import mmcon; mmcon.random.keys(seed=0)",
    "from mmcon.random import keys; keys(seed=0)",
    "import numpy as np; np.random.default_rng(0)",
    "import random; random.Random(0).random()",
    "from torch import nn; nn.Dropout(0.1)",
])  # fmt: skip
def test_the_check_passes(line):
    assert not global_draws(line), line
