"""DreamBooth-style: a rare word and the class noun, and low-rank weights (LoRA) on the generation expert.

Photographs are learned as "a photo of sks dog", beside pictures that the frozen model drew of "a photo of a dog", so
that the class is not forgotten (prior preservation). Only the generation expert's attention projections change, by
products of two thin matrices from `peft`; an artifact holds those, some hundred kilobytes a concept.

Shapes: r rank, I and O inputs and outputs of a projection.
"""

import copy
import json
import math
import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import torch
from PIL import Image
from safetensors.torch import load, save
from torch import Tensor, nn

from omnifarm.backbone.flow import SamplingOptions
from omnifarm.backbone.packing import pack
from omnifarm.backbone.segments import Segment
from omnifarm.backbone.weights import LoadedBackbone
from omnifarm.bench.rows import Row
from omnifarm.bench.system import Reply
from omnifarm.bench.tasks import BenchConcept
from omnifarm.concept.examples import Example, ExampleSampler
from omnifarm.concept.prepared import PreparedImage, prepare
from omnifarm.concept.prompts import user_text
from omnifarm.concept.recipe import TrainingRecipe
from omnifarm.concept.samples import Draws, draw_randomness, templates_of
from omnifarm.concept.spec import ConceptSpec
from omnifarm.errors import ConfigError, ServingError, TrainingError
from omnifarm.seeding import derive_seed, generator
from omnifarm.serving.door import Door
from omnifarm.serving.prompted import Prompted
from omnifarm.serving.requests import Limits
from omnifarm.store.base import Store

RARE_WORD = "sks"
"""Stands before the class noun."""
RANK = 8
"""r."""
NUM_CLASS_PICTURES = 10
"""Pictures of the class that are learned beside the photographs."""
PRIOR_WEIGHT = 1.0
"""Their loss against that of the photographs."""

PROJECTIONS = re.compile(r"language_model\.model\.layers\.\d+\.self_attn\.[qkvo]_proj_moe_gen")
"""Names of the projections that change."""


def learn_lora(loaded: LoadedBackbone, spec: ConceptSpec, *, recipe: TrainingRecipe) -> bytes:
    """Learn one concept.

    Args:
        loaded: The backbone, of the recipe's precision; stays as it is.
        spec: The concept.
        recipe: Half of each batch are photographs, half pictures of the class.

    Returns:
        The thin matrices as safetensors, `<projection>.down` (r, I) and `<projection>.up` (O, r) float32, and in the
        metadata seconds of training and the backbone's fingerprint.

    Raises:
        ConfigError: peft is not installed.
        TrainingError: The loss is no number.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ConfigError(
            "DreamBooth-style needs the package peft, which is not installed: pip install 'omnifarm[bench]', or leave "
            "dreambooth_style out of --baselines"
        ) from error

    began_s = time.monotonic()
    batches = _Batches(loaded, spec, recipe=recipe)
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(recipe.seed, spec.name, "lora") % 2**32)
        config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=PROJECTIONS.pattern)
        model = copy.deepcopy(loaded.model)
        inject_adapter_in_model(config, model)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(
        weights, betas=(recipe.beta1, recipe.beta2), eps=recipe.eps, weight_decay=recipe.weight_decay
    )
    for step in range(recipe.steps):
        samples, num_photos = batches.draw(step)
        packed = pack(samples, special_ids=loaded.special_ids, config=loaded.config).to(model.device)
        # Attention is laid out for a backward pass only where its input asks for one.
        hidden = model.embed(packed).detach().requires_grad_()
        output = model.losses(packed, model.run_outputs(packed, hidden))
        is_photo = output.mse_sample < num_photos
        loss = output.mse[is_photo].mean() + PRIOR_WEIGHT * output.mse[~is_photo].mean()
        if not math.isfinite(float(loss.detach())):
            raise TrainingError(f"{spec.name}: the loss became {float(loss.detach())} at step {step}")
        for weight, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
            weight.grad = gradient
        torch.nn.utils.clip_grad_norm_(weights, recipe.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate_at(step)
        optimizer.step()
    about = {"fingerprint": loaded.fingerprint, "train_s": str(round(time.monotonic() - began_s, 3))}
    return save(_matrices(model), metadata=about)


def train_seconds(data: bytes) -> float:
    """Return how long an artifact took to learn."""
    return float(_metadata(data)["train_s"])


class _Batches:
    """Photographs and pictures of the class, half and half."""

    def __init__(self, loaded: LoadedBackbone, spec: ConceptSpec, *, recipe: TrainingRecipe) -> None:
        self._loaded, self._spec, self._recipe = loaded, spec, recipe
        only_drawings = {"share_understanding": 0.0, "share_generation": 1.0, "share_editing": 0.0}
        self._half = max(1, recipe.batch_size // 2)
        per_batch = recipe.with_overrides({**only_drawings, "batch_size": self._half})
        templates = templates_of(loaded)
        self._sampler = ExampleSampler(spec, recipe=per_batch, templates=templates)
        self._caption = templates.captions[0].format(c=_article(spec.class_noun))
        self._photos = {image.digest: prepare(loaded, spec.open_image(image)) for image in spec.images}
        self._class = [prepare(loaded, picture) for picture in self._class_pictures()]

    def draw(self, step: int) -> tuple[list[list[Segment]], int]:
        """Return the samples of a step, photographs first, and how many photographs there are."""
        photos = []
        for index, example in enumerate(self._sampler.draw(step)):
            assert example.target is not None, example
            text = example.prompt.replace(self._spec.identifier, _rare(self._spec))
            photos.append(self._sample(text, self._photos[example.target.digest], step, index))
        prior = [
            self._sample(self._caption, self._class[(step * self._half + index) % len(self._class)], step, -1 - index)
            for index in range(self._half)
        ]
        return photos + prior, len(photos)

    def _sample(self, text: str, target: PreparedImage, step: int, index: int) -> list[Segment]:
        source = generator(self._recipe.seed, self._spec.name, "lora", step, index)
        example = Example(task="generation", kind="caption", prompt=text)
        draws: Draws = draw_randomness(example, recipe=self._recipe, image=None, target=target, source=source)
        said = user_text(text, tokenizer=self._loaded.tokenizer, rows={})
        return [
            replace(said, dropped=draws.is_text_dropped),
            *(
                target.target(timestep_logit=logit, noise=noise, posterior_noise=draws.target_posterior)
                for logit, noise in zip(draws.timestep_logits, draws.noises, strict=True)
            ),
        ]

    def _class_pictures(self) -> list[Image.Image]:
        config = self._loaded.config
        prompted = Prompted(self._loaded)
        size = Door(config, limits=Limits()).generation_size
        options = SamplingOptions.for_generation(config)
        seeds = [derive_seed(self._recipe.seed, self._spec.name, "class", k) for k in range(NUM_CLASS_PICTURES)]
        with ThreadPoolExecutor(NUM_CLASS_PICTURES) as pool:
            return list(
                pool.map(lambda seed: prompted.draw(self._caption, size=size, options=options, seed=seed), seeds)
            )


class LoraSystem:
    """Draws with a concept's own weights; asks for it by a rare word and the class noun.

    Args:
        loaded: The backbone.
        store: Holds the matrices.
        row: Unused but for the contract of systems.
    """

    def __init__(self, loaded: LoadedBackbone, *, store: Store, row: Row) -> None:
        self._plain = dict(loaded.model.named_modules())
        self._store, self._fingerprint = store, loaded.fingerprint
        self.model = copy.deepcopy(loaded.model)
        """The backbone with the concept's weights."""
        self._prompted = Prompted(replace(loaded, model=self.model))
        self._options = SamplingOptions.for_generation(loaded.config)
        self._size = Door(loaded.config, limits=Limits()).generation_size

    @torch.no_grad()
    def fit(self, concept: BenchConcept) -> None:
        """Add a concept's matrices to the plain weights.

        Raises:
            NotFoundError: It was not learned.
            ServingError: It was learned on another backbone.
        """
        data = self._store.get(lora_key(concept.name)).data
        if _metadata(data)["fingerprint"] != self._fingerprint:
            raise ServingError(f"the weights of {concept.name} were learned on another backbone; learn them again")
        matrices = load(data)
        for name, module in self.model.named_modules():
            if PROJECTIONS.fullmatch(name):
                plain = self._plain[name].get_parameter("weight")
                product = matrices[f"{name}.up"] @ matrices[f"{name}.down"]
                module.get_parameter("weight").copy_(plain.float() + product.to(plain.device))
        self._concept = concept

    def answer(self, question: str, picture: Image.Image | None) -> Reply:
        """Not done: only drawing was learned."""
        raise ServingError("DreamBooth-style answers nothing")

    def generate(self, prompt: str, *, seed: int) -> Reply:
        """Draw a picture."""
        said = prompt.replace(self._concept.identifier, _rare(self._concept.spec))
        return Reply(picture=self._prompted.draw(said, size=self._size, options=self._options, seed=seed))

    def edit(self, picture: Image.Image, instruction: str, *, seed: int) -> Reply:
        """Not done: only drawing was learned."""
        raise ServingError("DreamBooth-style edits nothing")


def lora_key(name: str) -> str:
    """Return where a concept's matrices lie in the store of a training."""
    return f"lora/{name}.safetensors"


def _rare(spec: ConceptSpec) -> str:
    return f"{RARE_WORD} {spec.class_noun}"


def _article(noun: str) -> str:
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"


def _matrices(model: nn.Module) -> dict[str, Tensor]:
    from peft.tuners.lora import LoraLayer

    found = {}
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            (adapter,) = module.lora_A
            down, up = (getattr(module, side)[adapter].weight.detach().float().cpu() for side in ("lora_A", "lora_B"))
            found[f"{name}.down"] = down.contiguous()
            found[f"{name}.up"] = (module.scaling[adapter] * up).contiguous()
    return found


def _metadata(data: bytes) -> dict[str, str]:
    # The header: its length as 8 bytes, then JSON.
    length = int.from_bytes(data[:8], "little")
    metadata: dict[str, str] = json.loads(data[8 : 8 + length])["__metadata__"]
    return metadata
