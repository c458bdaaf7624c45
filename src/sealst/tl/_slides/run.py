"""Carry slides through their steps, retry what fails, and keep the folder's tables up to date."""

from __future__ import annotations

import time
from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock

from sealst._data.bags.bags import BlankSlideError
from sealst._errors import CheckpointError, DataError, ScaleError, WeightsError
from sealst._files import write_text
from sealst._keys import Keys
from sealst._logging import logger, progress, warn
from sealst._text_table import read_text_table
from sealst.tl._slides.manifest import NOVELTY, PATH, SLIDE, Slide
from sealst.tl._slides.work import EMBED, FINISH, PLAN, Task
from sealst.tl._slides.workers import Outcome, Workers

DONE, BLANK, FAILED = "done", "blank", "failed"
MANIFEST, FAILURES = "manifest.csv", "failures.csv"
COLUMNS = (SLIDE, Keys.PATIENT, PATH, "file", "n_tiles", "status", "seconds", "digest")
_FAILURE_COLUMNS = (SLIDE, PATH, "error", "attempts")
#: how the progress bar looks
_BAR = "{l_bar}{bar}| {n:.1f}/{total} slides [{elapsed}<{remaining}{postfix}]"
#: seconds between two writings of the tables
_PAUSE = 5.0


class Tables:
    """``manifest.csv`` and ``failures.csv`` of a folder; several runs may write to them."""

    def __init__(self, out: Path, slides: Sequence[Slide]) -> None:
        self._out, self._order = out, [slide.name for slide in slides]
        self._rows: dict[str, dict[str, Any]] = {}
        self._failures: dict[str, dict[str, Any]] = {}
        #: slides of earlier runs that are not of this one, as the tables were written last
        self.kept: list[str] = []
        self._written = 0.0

    def add(
        self, slide: Slide, result: dict[str, Any] | None, error: str = "", attempts: int = 0, *, blank: bool = False
    ) -> None:
        """Note what became of a slide."""
        found = result or {}
        row = {SLIDE: slide.name, Keys.PATIENT: slide.patient, PATH: str(slide.path)}
        row |= {"file": f"slides/{slide.name}.h5ad" if result else "", "n_tiles": found.get("n_tiles", 0)}
        row |= {"status": DONE if result else BLANK if blank else FAILED, "seconds": found.get("seconds", 0.0)}
        row |= {"digest": found.get("digest", "")}
        # Of a model that knows what its training looked like: share of tiles that are unlike it.
        row |= {NOVELTY: found[NOVELTY]} if NOVELTY in found else {}
        self._rows[slide.name] = row | {Keys.ORGAN: slide.organ} | slide.labels
        if result is None:
            failure = {SLIDE: slide.name, PATH: str(slide.path), "error": error, "attempts": attempts}
            self._failures[slide.name] = failure
        if time.monotonic() - self._written > _PAUSE:
            self.write()

    def write(self) -> pd.DataFrame:
        """Write both tables, keeping rows of slides that are not of this run; returns the rows of this run."""
        with FileLock(self._out / ".tables.lock"):
            own = pd.DataFrame([self._rows[name] for name in self._order if name in self._rows])
            own = own.reindex(columns=[*COLUMNS, *(c for c in own.columns if c not in COLUMNS)])
            kept = _read(self._out / MANIFEST)
            kept = kept[~kept[SLIDE].isin(self._rows)]
            self.kept = [name for name in kept[SLIDE] if name not in self._order]
            failures = _read(self._out / FAILURES)
            failed = pd.DataFrame(list(self._failures.values()), columns=_FAILURE_COLUMNS)
            failures = _joined(failures[~failures[SLIDE].isin(self._rows)], failed)
            write_text(self._out / MANIFEST, _joined(kept, own).to_csv(index=False))
            write_text(self._out / FAILURES, failures.to_csv(index=False))
        self._written = time.monotonic()
        return own

    def drop(self, names: Sequence[str]) -> None:
        """Remove rows of both tables."""
        with FileLock(self._out / ".tables.lock"):
            for path in (self._out / MANIFEST, self._out / FAILURES):
                frame = _read(path)
                write_text(path, frame[~frame[SLIDE].isin(names)].to_csv(index=False))


def _read(path: Path) -> pd.DataFrame:
    """A table as it stands, every cell as text, so that it can be written back unchanged."""
    if not path.is_file():
        return pd.DataFrame({SLIDE: []}, dtype=str)
    frame = read_text_table(path, dtype=str, keep_default_na=False)
    if SLIDE not in frame:
        raise DataError(f"{str(path)!r} is damaged: it has no column {SLIDE!r}. Restore it, or name another folder.")
    return frame


def _joined(kept: pd.DataFrame, own: pd.DataFrame) -> pd.DataFrame:
    columns = [*own.columns, *(c for c in kept.columns if c not in own.columns)]
    return (pd.concat([kept, own]) if len(kept) else own).reindex(columns=columns)


@dataclass
class _State:
    """How far a slide has come."""

    digest: str = ""
    n_tiles: int = 0
    left: set[int] = field(default_factory=set)


class Run:
    """One run over slides."""

    def __init__(
        self, slides: Sequence[Slide], workers: Workers, tables: Tables, *, tiles_per_task: int, retries: int
    ) -> None:
        self._slides, self._workers, self._tables = slides, workers, tables
        self._tiles_per_task, self._retries = tiles_per_task, retries
        self._waiting = deque(range(len(slides)))
        self._active: dict[int, _State] = {}
        self._attempts: Counter[Task] = Counter()
        self._tiles: dict[int, int] = {}
        #: share of every slide that is done, 0 to 1
        self._share: defaultdict[int, float] = defaultdict(float)
        self.n_failed = self.n_skipped = self._n_tiles = 0
        #: names of slides without tissue
        self.blank: list[str] = []

    def __call__(self, *, show: bool | None) -> None:
        """Carry all slides to their end."""
        self._began, n = time.monotonic(), len(self._slides)
        # In slides, whose number is known: how many tiles those have that are still to come nobody knows.
        with progress(None, desc="embedding slides", total=n, show=show, bar_format=_BAR) as self._bar:
            while self._waiting or self._active:
                while self._waiting and self._workers.has_room():
                    index = self._waiting.popleft()
                    self._active[index] = _State()
                    self._submit(Task(index, PLAN))
                self._take(self._workers.next())
                self._bar.set_postfix_str(f"{self._n_tiles} tiles, {self.n_failed} failed", refresh=False)
                self._bar.refresh()

    def _advance(self, index: int, n_tiles: int) -> None:
        """Some more tiles of a slide are there."""
        self._n_tiles += n_tiles
        self._reach(index, self._share[index] + n_tiles / max(1, self._tiles[index]))

    def _reach(self, index: int, share: float) -> None:
        # What is tried again was counted before.
        share = min(1.0, share)
        self._bar.update(share - self._share[index])
        self._share[index] = share

    def _submit(self, task: Task) -> None:
        self._attempts[task] += 1
        self._workers.submit(task, self._slides[task.slide], self._active[task.slide].digest)

    def _take(self, outcome: Outcome) -> None:
        task, result = outcome.task, outcome.result or {}
        if task.slide not in self._active:
            # Of a slide that has failed by another of its tasks.
            return
        if outcome.error is not None:
            self._failed(task, outcome.error)
        elif task.step == PLAN:
            self._tiles[task.slide] = result["n_tiles"]
            if result.get("done"):
                self.n_skipped += 1
                self._advance(task.slide, result["n_tiles"])
                self._end(task.slide, result)
            else:
                self._active[task.slide] = _State(result["digest"], result["n_tiles"], set(result["left"]))
                self._advance(task.slide, result["kept"])
                following = [Task(task.slide, EMBED, start) for start in result["left"]]
                for step in following or [Task(task.slide, FINISH)]:
                    self._submit(step)
        elif task.step == EMBED:
            state = self._active[task.slide]
            state.left.discard(task.start)
            self._advance(task.slide, min(self._tiles_per_task, state.n_tiles - task.start))
            if not state.left:
                self._submit(Task(task.slide, FINISH))
        else:
            self._end(task.slide, result)
            for text in filter(None, (result.get("plain"), result.get("novel"))):
                warn(text)
            ended, n = len(self._slides) - len(self._waiting) - len(self._active), len(self._slides)
            left = (time.monotonic() - self._began) / max(1, ended - self.n_skipped) * (n - ended)
            minutes = round(left / 60)
            soon = f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"
            logger.info(
                "%s: %d tiles in %.0f s (slide %d of %d, about %s left)",
                *(self._slides[task.slide].name, result["n_tiles"], result["seconds"], ended, n, soon),
            )

    def _end(self, index: int, result: dict[str, Any]) -> None:
        del self._active[index]
        self._reach(index, 1)
        self._tables.add(self._slides[index], result)

    def _failed(self, task: Task, error: Exception) -> None:
        if isinstance(error, CheckpointError | WeightsError):
            # The model itself: no slide would fare better.
            raise error
        slide, attempts = self._slides[task.slide], self._attempts[task]
        text = f"{type(error).__name__}: {error}".strip()
        # A scale that the file does not state is not stated later either, and glass stays glass.
        if attempts <= self._retries and not isinstance(error, ScaleError | BlankSlideError):
            logger.info("%s: %s It is tried again.", slide.name, text)
            self._submit(task)
            return
        del self._active[task.slide]
        self._workers.drop(task.slide)
        self._reach(task.slide, 1)
        if isinstance(error, BlankSlideError):
            self.blank.append(slide.name)
            self._tables.add(slide, None, text, attempts, blank=True)
            logger.info("%s is blank: %s", slide.name, text)
            return
        self.n_failed += 1
        self._tables.add(slide, None, text, attempts)
        logger.warning("%s failed: %s", slide.name, text)
