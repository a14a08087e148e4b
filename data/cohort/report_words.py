"""The words of the simulated reports: one table a kind of phrase.

A noun ends in "|p" where its verb is plural. In templates, {x} is a noun phrase, {X}
the same with a capital, {a} its article or nothing, {is} and {has} agree with it.
README, "Reports", says which words negate and which leave open.
"""

# Finding -> its synonyms. A phrase of one finding contains no synonym of another.
NOUNS = {
    "Cardiomegaly": ("cardiomegaly", "cardiac enlargement", "heart enlargement"),
    "Enlarged Cardiomediastinum": (
        "mediastinal widening",
        "widening of the mediastinum",
    ),
    "Lung Opacity": ("opacity", "airspace opacity", "hazy opacity"),
    "Lung Lesion": ("nodule", "pulmonary nodule", "nodular lesion"),
    "Edema": ("pulmonary edema", "interstitial edema", "vascular congestion"),
    "Consolidation": ("consolidation", "focal consolidation"),
    "Pneumonia": ("pneumonia", "infectious process"),
    "Atelectasis": ("atelectasis", "subsegmental atelectasis", "volume loss"),
    "Pneumothorax": ("pneumothorax",),
    "Pleural Effusion": ("pleural effusion", "effusion", "pleural fluid"),
    "Pleural Other": ("pleural thickening", "pleural scarring"),
    "Fracture": ("rib fracture", "fracture"),
}
PLURALS = {"nodule": "nodules|p", "pulmonary nodule": "pulmonary nodules|p"}
PLURALS |= {"nodular lesion": "nodular lesions|p", "effusion": "effusions|p"}
PLURALS |= {"pleural effusion": "pleural effusions|p", "pleural fluid": "pleural fluid"}

COUNTED = ("opacity", "nodule", "lesion", "effusion", "pneumothorax", "fracture")

PRESENT = (
    "There {is} {a}{x}{change}.",
    "{X} {is} present{change}.",
    "{X} {is} seen{change}.",
    "{X} {is} noted{change}.",
    "{X}{change}.",
)
UNCERTAIN = (
    "There may be {a}{x}.",
    "Possible {x}.",
    "Questionable {x}.",
    "{X} cannot be excluded.",
    "{X} {is} possible.",
    "Findings may represent {a}{x}.",
    "Appearance is suspicious for {a}{x}.",
)
ABSENT = (
    "No {x}.",
    "There {is} no {x}.",
    "No evidence of {x}.",
    "{X} {is} not seen.",
    "The study is negative for {x}.",
)
RESOLVED = (
    "Previously seen {x} {has} resolved.",
    "Prior {x} {is} no longer seen.",
)
# Phrases of one finding's own.
OWN = {
    ("Cardiomegaly", 1.0): (
        "The heart is {degree} enlarged{change}.",
        "The cardiac silhouette is {degree} enlarged{change}.",
        "Heart size is {degree} enlarged{change}.",
    ),
    ("Cardiomegaly", 0.0): (
        "Heart size is normal.",
        "The heart is not enlarged.",
        "The cardiac silhouette is normal in size.",
        "Heart size is within normal limits.",
    ),
    ("Cardiomegaly", -1.0): (
        "The heart may be enlarged.",
        "Possible cardiomegaly.",
        "The cardiac silhouette is possibly enlarged.",
    ),
    ("Enlarged Cardiomediastinum", 1.0): (
        "The mediastinum is widened{change}.",
        "Mediastinal contours are widened{change}.",
    ),
    ("Enlarged Cardiomediastinum", 0.0): (
        "Mediastinal contours are unremarkable.",
        "The mediastinum is normal.",
        "The mediastinum is not widened.",
    ),
    ("Enlarged Cardiomediastinum", -1.0): (
        "The mediastinum may be widened.",
        "Possible mediastinal widening.",
    ),
}
BEHIND_HEART = (
    "There is a retrocardiac {x}{change}.",
    "Retrocardiac {x} {is} noted{change}.",
    "{X} in the left lower lobe behind the heart{change}.",
    "{X} {is} seen in the retrocardiac region{change}.",
)
ON_SPINE = (
    "On the lateral view, {a}{x} projects over the lower spine{change}.",
    "{X} projects over the lower thoracic spine on the lateral view{change}.",
)
POSTERIOR_ANGLE = (
    "Blunting of the {angle} indicates {a}{x}{change}.",
    "{X} {is} seen in the {angle}{change}.",
    "Blunting of the {angle} by {a}{x}{change}.",
)
DIAGNOSIS = (  # what an opacity may be: both stay open
    "This may represent {a} or {b}.",
    "Findings could reflect {a} or {b}.",
    "Differential includes possible {a} or {b}.",
)
NONE_OF = (
    "There is no {list}.",
    "No {list}.",
    "No evidence of {list}.",
    "There is no evidence of {list}.",
)
DEVICES = {
    "pacemaker": (
        "A left-sided pacemaker is in place with its lead in the right ventricle.",
        "Left pectoral pacemaker with a single lead.",
        "Pacemaker lead terminates in the right ventricle.",
    ),
    "line": (
        "A right internal jugular central venous catheter ends in the SVC.",
        "Right central line tip projects over the SVC.",
        "Central venous catheter in standard position.",
    ),
}
# Sentences that change no label.
CLEAR = ("The lungs are clear.", "Lungs are clear.", "Both lungs are clear.")
INFLATED = (
    "The lungs are hyperinflated.",
    "Lungs are hyperexpanded with flattened diaphragms.",
    "Flattening of the diaphragms suggests emphysema.",
)
SHALLOW = ("Lung volumes are low.", "Low lung volumes.", "Inspiration is shallow.")
AORTA = (
    "The aorta is tortuous.",
    "The thoracic aorta is calcified.",
    "The aorta is unfolded.",
)
BONES = (
    "Degenerative changes of the thoracic spine.",
    "Osseous structures are unremarkable.",
    "No acute osseous abnormality.",
    "Bones are intact.",
)
HILA = ("Hilar contours are normal.", "The hila are unremarkable.")
NORMAL = (
    "No acute cardiopulmonary process.",
    "No acute cardiopulmonary abnormality.",
    "Normal chest radiograph.",
    "No acute intrathoracic process.",
    "Unremarkable study.",
)
STABLE = (
    "No relevant change since the prior study.",
    "No significant interval change.",
)

DEGREES = {
    "Cardiomegaly": ("mildly", "moderately", "severely"),
    "Edema": ("mild", "moderate", "severe"),
    "Pleural Effusion": ("small", "moderate", "large"),
    "Atelectasis": ("minimal", "mild", "moderate"),
}
CHANGES = {
    "new": (", new since the prior study", ", new from prior", ", a new finding"),
    "same": (", unchanged", ", similar to prior", ", stable since the prior study"),
    "more": (", increased since the prior study", ", worse than prior", ", increased"),
    "less": (
        ", decreased since the prior study",
        ", improved from prior",
        ", decreased",
    ),
}
LOBES = {
    ("right", "upper"): ("right upper lobe", "right upper lung", "right apex"),
    ("right", "middle"): ("right middle lobe", "right mid lung"),
    ("right", "lower"): ("right lower lobe", "right lung base", "right base"),
    ("left", "upper"): ("left upper lobe", "left upper lung"),
    ("left", "middle"): ("lingula", "left mid lung"),
    ("left", "lower"): ("left lower lobe", "left lung base", "left base"),
}
BASES = ("left base", "right base", "lung bases")
COMPLAINTS = {
    "fluid": ("dyspnea", "shortness of breath", "leg swelling", "orthopnea"),
    "inflammation": ("cough", "fever", "cough and fever", "chills"),
    "other": ("chest pain", "weakness", "fall", "preoperative evaluation"),
}
QUESTIONS = (
    "eval for pneumonia",
    "assess for acute process",
    "? edema or effusion",
    "evaluate for interval change",
    "r/o infiltrate",
)
