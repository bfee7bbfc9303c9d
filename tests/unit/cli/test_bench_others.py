import json
from pathlib import Path

import pytest
from PIL import Image

from omnifarm.bench.data.load import BenchData, load_benchmark
from omnifarm.bench.judges.chat import ChatEndpoint, ChatSettings
from omnifarm.bench.others import OtherModel
from omnifarm.bench.plan import RunPlan
from omnifarm.bench.replies import ReplyFile
from omnifarm.bench.tasks import Sizes
from omnifarm.cli.bench_others import EndpointSystem, LocalModelSystem
from omnifarm.cli.bench_settings import plan_of
from omnifarm.cli.bench_work import ask_share
from omnifarm.errors import ConfigError, ServingError, WeightsError
from omnifarm.miniature.benchmark import BenchmarkSizes
from omnifarm.store.local import LocalStore
from omnifarm.store.memory import MemoryStore
from tests.unit.bench.fake_endpoint import FakeEndpoint, serving
from tests.unit.bench.tiny_models import write_chameleon, write_janus

SMALL = BenchmarkSizes(train=2, test=1, hard_negatives=1, easy_negatives=1, edits=1, edits_per_operation=1, removals=1)
SIZES = Sizes(concepts=1, questions=2, prompts=1, images_per_prompt=1, people_images=0, parg_prompts=0)
pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> BenchData:
    return load_benchmark("miniature:3", sizes=SIZES, scratch=tmp_path_factory.mktemp("drawn"), drawn_sizes=SMALL)


def test_options_name_other_models_and_what_they_are_shown(tmp_path: Path) -> None:
    folder = write_janus(tmp_path / "Janus-Pro-1B")
    plan = plan_of(
        data="miniature:0",
        variants="ours",
        baselines="none",
        others="gpt-4o-2024-11-20:tp, gpt-4o-2024-11-20:ip",
        others_url="http://host/v1",
        local_models=f"{folder}:tp",
    )
    assert [row.key for row in plan.chosen()] == [
        "ours", "gpt-4o-2024-11-20_tp", "gpt-4o-2024-11-20_ip", "janus-pro-1b_tp",
    ]  # fmt: skip
    assert [row.kind for row in plan.chosen()] == ["learned", "endpoint", "endpoint", "local"]
    assert "pure" in plan.row("janus-pro-1b_tp").tasks
    assert "pure" not in plan.row("gpt-4o-2024-11-20_tp").tasks, "a dash in the table: it draws nothing"
    assert RunPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    for wrong in ("gpt-4o", "gpt-4o:both", ":tp"):
        with pytest.raises(ConfigError, match="MODEL:tp"):
            plan_of(data="miniature:0", others=wrong)
    with pytest.raises(ConfigError, match=r"no config\.json"):
        plan_of(data="miniature:0", local_models=f"{tmp_path}:tp")


def test_a_share_asks_another_model_through_its_endpoint(drawn: BenchData, tmp_path: Path) -> None:
    (concept,) = drawn.benchmark.concepts
    fake = FakeEndpoint(words=lambda body: "Yes.", script=["refuse"])
    with serving(fake):
        other = OtherModel(model="some-model", prompt="ip", url=fake.url)
        plan = RunPlan(data=drawn.url, rows=(), others=(other,), sizes=SIZES)
        share = {"plan": plan.to_json(), "data": drawn.url, "row": other.key, "seed": 0, "concepts": [concept.name]}
        share |= {"store": str(tmp_path), "training": "", "at_once": 1, "retry_failed": False}
        items = [item for item in drawn.benchmark.items if item.task in ("rec", "vqa", "qa")]
        assert ask_share(share) == len(items) == len(fake.asked)
        assert ask_share(share) == 0
    replies = ReplyFile(LocalStore(tmp_path), prefix=plan.replies_key(other.row(), seed=0))
    found = [filed for _, filed in replies.read_all(items)]
    assert [filed.failure.rpartition(": ")[2] for filed in found] == ["refused"] + [""] * (len(items) - 1)
    assert {filed.text for filed in found[1:]} == {"Yes."}
    parts = fake.asked[1]["messages"][-1]["content"]
    assert [part["type"] for part in parts] == ["text", "image_url", "image_url", "text"]
    assert parts[0]["text"] == f"This is {concept.identifier}:"


def test_an_endpoint_is_shown_the_description_for_tp_and_draws_nothing(drawn: BenchData) -> None:
    (concept,) = drawn.benchmark.concepts
    with serving(FakeEndpoint()) as fake:
        chat = ChatEndpoint(ChatSettings(model="m", base_url=fake.url), api_key="", store=MemoryStore())
        system = EndpointSystem(chat, row=OtherModel(model="m", prompt="tp", url=fake.url).row())
        system.fit(concept)
        system.answer("Who?", None)
        with pytest.raises(ServingError, match="draws nothing"):
            system.generate("a photo", seed=0)
        said = [part["text"] for part in fake.asked[0]["messages"][-1]["content"]]
    assert concept.spec.info in said[0]
    assert all(fact in said[0] for fact in concept.spec.extra_info)


def test_a_chameleon_in_a_folder_answers_and_draws_nothing(drawn: BenchData, tmp_path: Path) -> None:
    folder = write_chameleon(tmp_path)
    other = OtherModel(model=str(folder), prompt="ip")
    system = LocalModelSystem(str(folder), row=other.row())
    system.fit(drawn.benchmark.concepts[0])
    picture = Image.new("RGB", (64, 48), "red")
    seen, unseen = system.answer("Who?", picture).text, system.answer("Who?", None).text
    assert seen
    assert seen != unseen, "the picture counts"
    assert seen == system.answer("Who?", picture).text
    with pytest.raises(ServingError, match="draws nothing"):
        system.generate("a photo", seed=0)


def test_a_janus_in_a_folder_answers_and_draws_by_the_seed(drawn: BenchData, tmp_path: Path) -> None:
    folder = write_janus(tmp_path)
    system = LocalModelSystem(str(folder), row=OtherModel(model=str(folder), prompt="tp", draws=True).row())
    system.fit(drawn.benchmark.concepts[0])
    assert system.answer("Who?", Image.new("RGB", (64, 48), "red")).text
    drawings = [system.generate("a photo", seed=seed).picture.tobytes() for seed in (1, 1, 2)]  # type: ignore[union-attr]
    assert drawings[0] == drawings[1] != drawings[2]
    with pytest.raises(ServingError, match="edits nothing"):
        system.edit(Image.new("RGB", (8, 8)), "make it blue", seed=0)


def test_a_folder_without_a_model_says_so(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="holds no model"):
        LocalModelSystem(str(tmp_path), row=OtherModel(model="x", prompt="tp").row())
