"""What can go wrong, as types a caller can catch. Every message says what came, what is accepted and what to do."""


class SwiftVLMError(Exception):
    """The base of every error that this library raises on purpose."""


class BudgetError(SwiftVLMError, ValueError):
    """A budget, preset or table of counts that cannot be met; the message names what could be."""


class MethodError(SwiftVLMError, ValueError):
    """An unknown method, or fields of a method that contradict each other or the model's depth."""


class FamilyError(SwiftVLMError, ValueError):
    """A model that cannot be pruned inside its language model, or that no family knows."""


class UnsupportedError(SwiftVLMError, RuntimeError):
    """A way of running the model that pruning cannot follow correctly; the message names the way out."""


class TraceError(SwiftVLMError, ValueError):
    """A trace that is empty, a file that does not hold one, or a run that a figure cannot place on its image."""


class SelectionError(SwiftVLMError, ValueError):
    """A layer profile from which pruning layers cannot be chosen; the message says what it has."""
