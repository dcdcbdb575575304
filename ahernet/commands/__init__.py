"""The commands: one step each, from files of features to a score."""

from ahernet.commands import data, demonstration, doctor, experiments, extraction, localization, reporting, training

COMMANDS = {
    **demonstration.COMMANDS,
    **data.COMMANDS,
    **extraction.COMMANDS,
    **training.COMMANDS,
    **localization.COMMANDS,
    **reporting.COMMANDS,
    **experiments.COMMANDS,
    **doctor.COMMANDS,
}
