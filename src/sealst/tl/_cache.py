"""Clear what training keeps on disk."""

from __future__ import annotations

from sealst._data.tokens import clear
from sealst._logging import logger
from sealst._train.inputs import token_root
from sealst._validate import check_positive


def clear_cache(*, older_than: float | None = None, dry_run: bool = False) -> int:
    """Remove cached tokens of frozen encoder blocks, see ``params.cache`` of `finetune`.

    Only the folder ``tokens`` below ``settings.cache_dir`` is touched, and nothing in it that a run is writing or
    reading, in this process or another.

    Parameters
    ----------
    older_than
        Keep what a run used in the last so many days; by default nothing is kept.
    dry_run
        Only count.

    Returns
    -------
    Bytes that were freed, or with `dry_run` would be.

    Raises
    ------
    DataError
        When `older_than` is not positive.

    Examples
    --------
    >>> import sealst as sl
    >>> freed = sl.tl.clear_cache(older_than=30, dry_run=True)
    """
    if older_than is not None:
        check_positive("older_than", older_than)
    freed = clear(token_root(), older_than=older_than, dry_run=dry_run)
    logger.info("%s %.2f GiB below %s", "would free" if dry_run else "freed", freed / 2**30, token_root())
    return freed
