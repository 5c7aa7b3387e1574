"""What an adapter did to a model, in the words of ``load_state_dict``."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LoadReport:
    """Names of parameters, as `torch.nn.Module.named_parameters` spells them.

    Attributes
    ----------
    loaded : tuple of str
        Written.
    missing : tuple of str
        Left as they were: nothing was computed for them.
    unexpected : tuple of str
        Computed or given, with no place in the model.
    tied : tuple of (str, str)
        Pairs that share one tensor.
    untied : tuple of str
        Shared a tensor before, and have their own now.
    notes : tuple of str
        Sentences for the reader: what was chosen, and what differs from the model's defaults.

    Examples
    --------
    >>> LoadReport(loaded=("0.weight",), missing=("0.bias",)).missing
    ('0.bias',)
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    tied: tuple[tuple[str, str], ...] = ()
    untied: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
