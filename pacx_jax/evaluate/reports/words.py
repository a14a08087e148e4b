"""What the report's page says of a method: its names, headings and explanations.

The page itself knows no method. A section whose words a method lacks is left out of
its page; a section without values is there, and says so.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Section:
    """The words of a section.

    Attributes:
      title: its heading.
      empty: said instead of its content where there is none.
      text: a paragraph that explains what it shows.
    """

    title: str
    empty: str
    text: str = ""


@dataclasses.dataclass(frozen=True)
class Words:
    """The words of a method. Line ends within them are spaces.

    Attributes:
      treatment, baseline: names of the two arms whose difference is the finding.
      treatment_arm, baseline_arm: their keys among the arms.
      simulated: what comes from a program where the patients are simulated; the subject
        of a sentence.
      introduction: which encoders are compared, and how.
      comparison: treatment against baseline.
      arms: all arms, what floors and ceiling are.
      controls: the other pairs of arms, what they tell apart.
      measured: a further paragraph on the probes.
      alignment, reconstructions, texts, retrieval, rollouts: further sections; None:
        the method has no such thing.
    """

    treatment: str
    baseline: str
    treatment_arm: str
    baseline_arm: str
    simulated: str
    introduction: str
    comparison: Section
    arms: Section
    controls: Section
    measured: str = ""
    alignment: Section | None = None
    reconstructions: Section | None = None
    texts: Section | None = None
    retrieval: Section | None = None
    rollouts: Section | None = None


PACX = Words(
    treatment="PaCX",
    baseline="MAE",
    treatment_arm="pacx",
    baseline_arm="mae",
    simulated="""Every X-ray, ECG,
laboratory value and label""",
    introduction="""\
Two X-ray encoders are compared. MAE learned from X-rays alone; PaCX is
the same encoder, taught further by the ECGs and laboratory values of the same patients.
Both then see only X-rays, and a linear probe on each predicts labels of patients that
neither has met, scored by AUROC (0.5 is chance, 1 is perfect).""",
    comparison=Section(
        "PaCX against the MAE it started from", "No comparison was made in this run."
    ),
    arms=Section(
        "Every arm, with its floors and ceiling",
        "No arm was probed in this run.",
        """\
A floor is what an encoder reaches without learning physiology from pairs; the ceiling
reads the ECG and laboratory embeddings themselves, which PaCX never sees when it is
used.""",
    ),
    controls=Section(
        "Could something else explain it?",
        "No other pair of arms was compared in this run.",
        """\
If the gain comes from the pairing of X-rays with ECGs and laboratory values, then more
training without pairs, or with pairs shuffled between patients, must not give it. Each
cell is a paired difference in macro AUROC, its 95% interval, and what that shows.""",
    ),
    reconstructions=Section(
        "Reconstructions of masked X-rays",
        "No reconstructions were made in this run.",
    ),
    retrieval=Section(
        "Finding a patient's ECG and laboratory values from the X-ray",
        "Retrieval was not measured in this run.",
        """\
Recall at k: the share of X-rays whose own patient's ECG or laboratory embedding is
among the k most similar; chance is k divided by their number.""",
    ),
    rollouts=Section(
        "Where the encoders look",
        "No attention was recorded in this run.",
        """\
Attention rolled out from the CLS token through all layers, each map scaled to its own
range: bright is more. In the difference, red is where PaCX draws more than MAE, blue
where it draws less. It shows where information can flow, not why a prediction is made.""",  # noqa: E501
    ),
)

MVMAE = Words(
    treatment="MVMAE",
    baseline="Independent",
    treatment_arm="mvmae",
    baseline_arm="independent",
    simulated="Every X-ray, report and label",
    introduction="""\
X-ray encoders are compared that learned from the same studies of several views.
Independent reconstructs the masked patches of each view by itself. MVMAE also aligns
the embeddings of a study's views. MVMAE-V2T predicts the study's report besides. All
then see only X-rays, and a linear probe on each, whose logits are averaged over a
study's views, predicts labels of patients that none has met, scored by AUROC (0.5 is
chance, 1 is perfect).""",
    comparison=Section(
        "MVMAE against independent views, with two views of a study",
        "No comparison was made in this run.",
    ),
    arms=Section(
        "Every arm, by the views it sees, with its floors",
        "No arm was probed in this run.",
        """\
Two views: the probe is fitted and tested on frontal and lateral. One view at test: the
same probe, tested on the frontal alone. Frontal alone: fitted and tested on frontals. A
floor is what needs no pretraining; the view label alone says how much a label depends
on which views were taken.""",
    ),
    controls=Section(
        "What do the views and the reports give?",
        "No pair of arms was compared in this run.",
        """\
Each cell is a paired difference in macro AUROC, its 95% interval, and what that shows.
The first pairs ask for the gain of the alignment, of the reports, and of what is left
with one view at test; then for that of a second view; the last for that of
pretraining.""",
    ),
    measured="""\
Views. A study's feature is the mean over its images' CLS tokens, so that a probe's
logit is the mean over the views. Standardisation takes the deviation over images.""",
    alignment=Section(
        "Alignment of the views over training",
        "No alignment was recorded in this run.",
        """\
The cosine between the embeddings of a study's two views, and between views of
different studies, on held-out studies, all masked. The views are aligned where the
first is above the second; if both are near 1, all embeddings are alike. The loss, which
independent views do not have, is of the training studies, before its weight.""",
    ),
    reconstructions=Section(
        "Reconstructions of both views of held-out studies",
        "No reconstructions were made in this run.",
    ),
    texts=Section(
        "Reports that the encoder's text decoder writes",
        "No reports were generated in this run.",
        """\
Of held-out studies, word by word the likeliest, from a whole X-ray; the decoder is
discarded when the encoder is exported. The scores compare the findings that rules read
from generated and from true reports.""",
    ),
    retrieval=Section(
        "Finding the other view of the same study",
        "Retrieval was not measured in this run.",
        """\
Recall at k: the share of held-out X-rays for which the other view of their study is
among the k most similar by cosine; chance is k divided by their number. Probes take the
CLS token; the alignment is trained on the mean of a view's visible tokens.""",
    ),
)

CHEXMIX = Words(
    treatment="CheXmix",
    baseline="Causal alone",
    treatment_arm="masked",
    baseline_arm="continued",
    simulated="Every X-ray, report and label",
    introduction="""\
Models are compared that learned from X-rays and reports in one sequence of tokens.
Causal alone predicts each next token; CheXmix does so first, and then goes on with a
part of its inputs masked, for as many steps in all. Both then see X-rays alone, of
which a share is hidden, and a linear probe on the mean of their middle layers, fitted
on whole X-rays, predicts labels of patients that none has met, scored by AUROC (0.5 is
chance, 1 is perfect).""",
    comparison=Section(
        "Two stages against one, by how much of the X-rays is hidden",
        "No comparison was made in this run.",
    ),
    arms=Section(
        "Every arm, by how much of the X-rays is hidden",
        "No arm was probed in this run.",
        """\
The masked autoencoder learned from the same X-rays without reports; nothing stands for
what is hidden from it. All arms were probed on the same images with the same patches
hidden.""",
    ),
    controls=Section(
        "How the arms differ",
        "No pair of arms was compared in this run.",
        "Each cell is a paired difference in macro AUROC, its 95% interval, and what "
        "that shows.",
    ),
    reconstructions=Section(
        "Filled-in X-rays of held-out studies",
        "No X-ray was filled in in this run.",
    ),
    texts=Section(
        "Reports that it writes",
        "No reports were generated in this run.",
        """\
Of held-out studies, word by word the likeliest, from whole and partly hidden X-rays;
beside the report of the nearest training X-ray, and the most frequent report.""",
    ),
    retrieval=Section(
        "Finding a study's report by its X-ray, and the X-ray by the report",
        "Retrieval was not measured in this run.",
        """\
Recall at k: the share of queries whose own counterpart is among the k likeliest; chance
is k divided by their number.""",
    ),
)
