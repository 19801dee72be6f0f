"""A run's folder: everything that a training run leaves behind, and that lets it go on as if it had never stopped.

    config.json        what it was started with; a resume with another config is refused, field by field
    environment.json   what it ran on
    metrics.jsonl      deterministic values only: byte-identical after any number of kills and resumes
    timing.jsonl       what the clock says, kept apart for that reason
    journal.jsonl      events: starts, saves, rewinds, stops, with time
    checkpoints/       arrays, hook state and loop position in one atomic commit, every byte checksummed
    report.html        written at the end
    result.json        what the experiment found, where it ended by `train.conclude`
    card.md            the same for people and repositories, with card_*.png
    lock               the process that is writing the run, held until it ends

A checkpoint holds global logical arrays by path, so that any strategy reads any other's. It is marked good only when
the values through its step are known finite, and verified whole before a single array is used: bits flip, disks fill,
processes are killed in the middle of a write, and a run that resumes from the wrong bytes is worse than one that
stops. A damaged checkpoint is renamed, never deleted, and the one before it used.

Opening a folder loads neither orbax nor tensorboardX; the first save, restore or event file does.
"""

from jaxnn.runs.card import own_card as own_card, write_card as write_card
from jaxnn.runs.checkpoint import Checkpoints as Checkpoints, Restored as Restored
from jaxnn.runs.comparison import comparison_page as comparison_page
from jaxnn.runs.environment import fingerprint as fingerprint, usage as usage
from jaxnn.runs.folder import RunFolder as RunFolder, config_changes as config_changes
from jaxnn.runs.follower import Follower as Follower
from jaxnn.runs.journal import Journal as Journal
from jaxnn.runs.logs import MetricFile as MetricFile, TensorBoard as TensorBoard
from jaxnn.runs.record import Record as Record, read_record as read_record, stored_params as stored_params
from jaxnn.runs.result import Result as Result, read_result as read_result, write_result as write_result
from jaxnn.runs.summary import Section as Section, summary_page as summary_page, write_summary as write_summary
