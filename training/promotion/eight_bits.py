"""The eight-bit file of a run: it goes live with the run, so it is judged by its own answers."""

from dataclasses import replace

from serving.contract.model_files import MODEL, int8_of
from training.errors import ExportRefused
from training.export.quantization.int8_file import quantize
from training.promotion.outcome import RunJudge
from training.report.run_facts import ReportInput


def with_eight_bits(inputs: ReportInput, judge: RunJudge | None) -> ReportInput:
    """What a report is made of, with the file of --quantize int8 made and judged. Raises OSError.

    The rule of promotion holds for its own answers, too, or there is no such file.
    """
    config, run = inputs.config, inputs.config.run
    if config.quantize != "int8":
        return inputs
    try:
        made = quantize(
            run / MODEL,
            int8_of(run / MODEL),
            inputs.dataset,
            least_agreement=config.int8_agreement,
            judge=judge,
        )
    except ExportRefused as error:
        return replace(inputs, no_int8=str(error))  # the float32 file is proved, and is published
    return replace(inputs, quantized=made)
