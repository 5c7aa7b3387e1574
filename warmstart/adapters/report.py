"""The report of an adapter: which parameters it wrote, in the terms of ``load_state_dict``."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LoadReport:
    """Names of parameters, as `torch.nn.Module.named_parameters` spells them.

    Attributes
    ----------
    loaded : tuple of str
        Parameters that were written.
    missing : tuple of str
        Parameters that keep their values.
    unexpected : tuple of str
        Parameters that were computed or given but do not exist in the model.
    tied : tuple of (str, str)
        Pairs of parameters that share one tensor.
    untied : tuple of str
        Parameters that shared a tensor before and now have their own.
    notes : tuple of str
        Sentences on what was chosen and on what differs from the model's defaults.

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
