"""What a program costs, before it runs: FLOPs and bytes from its jaxpr, memory and collectives from its HLO.

XLA's own `cost_analysis` counts the body of a loop once and one device of many, so the count here walks the jaxpr: a
scan's body times its length, the largest branch of a condition, a manual region times its devices. What has no rule is
listed, never guessed.
"""

from jaxnn.cost.collectives import Collective as Collective, collectives as collectives
from jaxnn.cost.lifetimes import gathered_alive as gathered_alive
from jaxnn.cost.memory import Memory as Memory, memory as memory
from jaxnn.cost.result import Cost as Cost
from jaxnn.cost.source import Line as Line, by_source as by_source
from jaxnn.cost.tracing import of as of
