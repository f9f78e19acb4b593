"""Models as they are evaluated: trained here or by others, their inference-time defenses in front."""

from __future__ import annotations

import torch

from robbench.core.contracts import Classifier, to_float
from robbench.models._external.loading import External, load_external
from robbench.models._vote import Vote
from robbench.planning.plan import ExternalJob, Job, TrainedJob
from robbench.results.store import Store
from robbench.training.judging import JUDGING_BATCH
from robbench.training.trainer import trained_model


def load_model(job: Job, store: Store, device: str, defended: bool = True) -> Classifier:
    """A job's model in evaluation mode, its weights frozen, with its inference-time defenses in front.

    Images pass the defenses first to last, as they do in training. Without ``defended`` they are left out. Thresholds
    are set on the data's validation images.

    Raises:
        ValueError: If a model of others is no longer the one that the job is about, or thresholds cannot be set.
    """
    if job.members:
        model: Classifier = Vote([load_model(member, store, device, defended) for member in job.members])
    elif isinstance(job, TrainedJob):
        model = trained_model(job, store)
    else:
        assert isinstance(job, ExternalJob)
        model = _external(job).model
    for choice in reversed(job.defenses if defended else ()):
        model = choice.component.wrap(model)
    model = model.to(device).eval().requires_grad_(False)
    if defended and job.defenses and model.rejects:
        images = job.data.samples("validation").images
        model.calibrate(to_float(part, device) for part in torch.split(images, JUDGING_BATCH) if len(part))
    return model


def _external(job: ExternalJob) -> External:
    if job.live is not None:
        return job.live
    channels, height, width = job.data.decoded.images.shape[1:]
    found = load_external(job.asked, (channels, height, width), job.data.num_classes, job.folder)
    assert job.spec.external is not None
    if found.identity != job.spec.external.identity:
        raise ValueError(f"{job.spec.label} is not what it was when the run began; run again")
    return found
