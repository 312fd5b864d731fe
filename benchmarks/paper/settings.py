"""What every run of the study has in common; other settings make other, separate results."""

import hashlib
import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Settings:
    """Amounts of training, in optimizer steps, and how much each protocol prunes.

    The rounds and the optimizer (AdamW) are the paper's; the amounts of training are what two
    processor cores can do in some hours.

    Attributes:
        dense_steps: The training before any pruning.
        early_step: The step of it to which rewinding goes back.
        retrain_steps: The training after every pruning, the same in all protocols.
        batch: Images a step.
        learning_rate: Constant throughout.
        weight_decay: AdamW's.
        rounds: Prunings of an iterative run.
        fraction: What each of them prunes of the weights that remain.
        one_shot: The sparsities of one-shot pruning.
        train_images: How many training images are used, the first ones.
        test_images: How many test images are used, the first ones.
        revision: Raised when the code of models, data or protocols changes what comes out.
    """

    dense_steps: int = 3000
    early_step: int = 500
    retrain_steps: int = 1000
    batch: int = 100
    learning_rate: float = 3e-4
    weight_decay: float = 0.01
    rounds: int = 20
    fraction: float = 0.2
    one_shot: tuple[float, ...] = (0.8, 0.9, 0.95, 0.98, 0.99)
    train_images: int = 60_000
    test_images: int = 10_000
    revision: int = 1

    @property
    def identity(self) -> str:
        """Eight hexadecimal digits that other settings do not have."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:8]


STUDY = Settings()
QUICK = Settings(
    dense_steps=6,
    early_step=2,
    retrain_steps=2,
    rounds=2,
    one_shot=(0.8, 0.99),
    train_images=1000,
    test_images=200,
)
