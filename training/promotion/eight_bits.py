"""The eight-bit file of a run: it goes live with the run, so it is judged by its own answers."""

from serving.contract.files.names import MODEL, int8_of
from training.data.dataset import Dataset
from training.errors import ExportRefused
from training.export.quantization.int8_file import Int8Comparison, quantize
from training.options.settled import SettledConfig
from training.promotion.outcome import RunJudge


def eight_bits(
    config: SettledConfig, dataset: Dataset, judge: RunJudge | None
) -> tuple[Int8Comparison | None, str | None]:
    """Make the file of --quantize int8 and compare it with the float32 file; or the reason why it was refused.

    The rule of promotion holds for its own answers, too, or it is not published. Raises OSError.
    """
    if config.quantize != "int8":
        return None, None
    source = config.run / MODEL
    try:
        quantized = quantize(source, int8_of(source), dataset, least_agreement=config.int8_agreement, judge=judge)
    except ExportRefused as error:
        return None, str(error)  # the float32 file is proved, and is published
    return quantized, None
