"""vargpt: one model that reads images, draws them and edits them.

Importing the package registers its configuration, model and processor with transformers' Auto classes.
"""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

from vargpt.configuration import Behaviour, VargptConfig, VargptOfficialConfig
from vargpt.inference.dialogue import Dialogue
from vargpt.inference.pipeline import VargptPipeline
from vargpt.model import VargptForConditionalGeneration
from vargpt.processing.processor import VargptProcessor
from vargpt.scales import ScaleSchedule

__all__ = [
    "Behaviour",
    "Dialogue",
    "ScaleSchedule",
    "VargptConfig",
    "VargptForConditionalGeneration",
    "VargptPipeline",
    "VargptProcessor",
]
__version__ = "0.1.0"

for _config in (VargptConfig, VargptOfficialConfig):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
# A published config.json is read into a `VargptConfig`, so one registration serves both layouts.
AutoModel.register(VargptConfig, VargptForConditionalGeneration, exist_ok=True)
AutoModelForImageTextToText.register(VargptConfig, VargptForConditionalGeneration, exist_ok=True)
AutoProcessor.register(VargptConfig, VargptProcessor, exist_ok=True)
