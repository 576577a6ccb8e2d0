"""What must hold of an object before it is stored: rules, each yields problems with the exact path, the value and what
would be right.

Sources: the original's verdicts (tests/data/golden/validation.json) and policy 3. Types and words of single values are
checked by `model.schema` before; rules that need other objects (overlap, existing tier) are in
`model.validation.against`. A selector's grammar is known to `policy.selector`, which this package must not import: its
parser is passed in.
"""

from calico_plugin.model.validation.rules import check, problems
from calico_plugin.model.validation.text import SelectorParser

__all__ = ["SelectorParser", "check", "problems"]
