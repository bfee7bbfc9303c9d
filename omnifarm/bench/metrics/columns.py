"""Every column of the tables: its name, what it needs, and which way is better."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from omnifarm.bench.tasks import Task

Section = Literal["paper", "honest", "stand-in", "world"]
"""The paper's; what keeps them honest; what runs where the paper's encoder does not; exact on the drawn world."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """One column."""

    key: str
    """Name in files."""
    title: str
    """Name in tables."""
    task: Task
    """A row without this task reads "-"."""
    section: Section = "paper"
    """Where it stands."""
    about: str = ""
    """One line for the reader."""
    is_higher_better: bool | None = True
    """None where neither is."""


_COLUMNS = (
    Column(key="rec", title="Rec", task="rec", about="recognition, mean of recall over yes and over no"),
    Column(key="vqa_bleu", title="VQA BLEU", task="vqa", about="character BLEU (0.7, 0.3)"),
    Column(key="vqa_gpt", title="VQA GPT", task="vqa", about="judge of answers"),
    Column(key="qa_bleu", title="QA BLEU", task="qa", about="character BLEU (0.7, 0.3)"),
    Column(key="qa_gpt", title="QA GPT", task="qa", about="judge of answers"),
    Column(key="clip_i", title="CLIP-I", task="pure", about="drawings against training photographs"),
    Column(key="clip_t", title="CLIP-T", task="pure", about="drawings against the prompt with the class noun"),
    Column(key="dino", title="DINO", task="pure", about="drawings against training photographs; not calibrated to the paper"),
    Column(key="face_simi", title="Face-Simi", task="people", about="ArcFace, mean over detected faces"),
    Column(key="parg_score", title="PARG Score", task="parg", about="judge of facts in drawings"),
    Column(key="parg_clip_i", title="PARG CLIP-I", task="parg"),
    Column(key="sema_c", title="SEMA-C", task="edit", about="judge: least of success, preservation, identity"),
    Column(key="qual_i", title="QUAL-I", task="edit", about="judge: least of naturalness, freedom from artifacts"),
    Column(key="avg", title="Avg", task="edit", about="mean of SEMA-C and QUAL-I"),
    Column(key="rec_unparsed", title="Rec unparsed", task="rec", section="honest", is_higher_better=False,
           about="share of answers with neither yes nor no"),
    Column(key="vqa_word_bleu", title="VQA word BLEU", task="vqa", section="honest"),
    Column(key="qa_word_bleu", title="QA word BLEU", task="qa", section="honest"),
    Column(key="face_detected", title="faces found", task="people", section="honest", about="share of drawings with a face"),
    Column(key="face_with_zeros", title="Face-Simi, none = 0", task="people", section="honest"),
    Column(key="clip_i_test", title="CLIP-I to test photos", task="pure", section="honest",
           about="far below CLIP-I: the training photographs are repeated"),
    Column(key="clip_copy", title="copying (CLIP)", task="pure", section="honest", is_higher_better=None,
           about="cosine to the nearest training photograph"),
    Column(key="edit_overall", title="edit O/10", task="edit", section="honest", about="GEdit's sqrt(SC x PQ) per sample"),
    Column(key="replay_accuracy", title="replay BLEU", task="parg", section="honest",
           about="what replay remembered: its prompt against the explicit request, or its answer against the nearest fact"),
    Column(key="efficientnet_i", title="EfficientNet-I", task="pure", section="stand-in", about="in CLIP-I's place"),
    Column(key="efficientnet_copy", title="copying (EfficientNet)", task="pure", section="stand-in", is_higher_better=None,
           about="cosine to the nearest training photograph"),
    Column(key="parg_efficientnet_i", title="PARG EfficientNet-I", task="parg", section="stand-in"),
    Column(key="dlib_distance", title="dlib face distance", task="people", section="stand-in", is_higher_better=False,
           about="below 0.6: the same person, by dlib's rule"),
    Column(key="dlib_detected", title="faces found (dlib)", task="people", section="stand-in"),
    Column(key="vqa_minilm", title="VQA MiniLM", task="vqa", section="stand-in", about="cosine of answer and reference"),
    Column(key="qa_minilm", title="QA MiniLM", task="qa", section="stand-in", about="cosine of answer and reference"),
    Column(key="world_vqa", title="VQA exact", task="vqa", section="world"),
    Column(key="world_qa", title="QA exact", task="qa", section="world"),
    Column(key="world_identity", title="identity drawn", task="pure", section="world", about="share of attributes read back"),
    Column(key="world_place", title="place drawn", task="pure", section="world"),
    Column(key="world_parg", title="fact drawn", task="parg", section="world"),
    Column(key="world_replay", title="replay exact", task="parg", section="world",
           about="replay's prompt is the request with the fact put in"),
    Column(key="world_edit", title="edit done", task="edit", section="world", about="as asked, identity kept"),
)  # fmt: skip

COLUMNS: Mapping[str, Column] = {column.key: column for column in _COLUMNS}
"""Every column by key, in the order of the report."""
PAPER_COLUMNS = tuple(column.key for column in _COLUMNS if column.section == "paper")
"""Table 1's columns, in its order."""
