"""What the tests of this folder share."""

from tests.train.conftest import interruptible as interruptible
