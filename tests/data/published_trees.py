"""Small trees in the layouts of published sets, with their file names and columns.

Images are one film of the simulated cohort, moved a little, in the encodings that are
found in public sets: JPEG, PNG with alpha, 16-bit PNG, under any extension. Each
tree has a row twice where it has rows, and labels that are missing where the set may.
"""

import functools
import gzip
import importlib
import io
import json
import pathlib
import shutil

import numpy as np
from PIL import Image

from data.cohort import latents, xray
from pacx_jax.input import images
from tests.input import dicom_files

CLASSIFIERS = (
    "tb",
    "vindr_cxr",
    "nih14",
    "chestx6",
    "chexchonet",
    "covid_qu_ex",
    "covidx",
    "kermany",
    "qata_cov19",
    "cxlseg",
    "mimic_cxr",
    "padchest",
    "openi",
    "rsna_pneumonia",
    "siim_acr",
    "tbx11k",
)


def module(name):
    """The builder's module."""
    return importlib.import_module(f"data.{name}.{name}_dataset_builder")


@functools.cache
def film_and_mask() -> tuple[np.ndarray, np.ndarray]:
    study = latents.study(latents.Key(0, "probe_train", 1, 0))
    drawn, mask = xray.render(study, mask=True)
    small = images.shrink(drawn, 40)
    return small, images.resize_to(mask, *small.shape)


def film() -> np.ndarray:
    return film_and_mask()[0]


def put(path: pathlib.Path, i: int = 0) -> None:
    """One of the encodings found in public sets, whatever the name's extension."""
    grey = np.roll(film(), i, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    stream = io.BytesIO()
    if i % 4 == 0:
        stream.write(images.encode_jpeg(grey))
    elif i % 4 == 1:
        alpha = np.full_like(grey, 200)
        Image.fromarray(np.stack([grey, grey, grey, alpha], -1)).save(stream, "PNG")
    elif i % 4 == 2:
        Image.fromarray(grey.astype(np.uint16) * 257).save(stream, "PNG")
    else:
        stream.write(images.encode_png(grey))
    path.write_bytes(stream.getvalue())


def put_mask(path: pathlib.Path, i: int = 0) -> None:
    """The lungs of the film of the same number, in what masks are published in."""
    mask = np.roll(film_and_mask()[1], i, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    stream = io.BytesIO()
    inside = np.uint8(mask > 127)
    if i % 4 == 0:  # with levels between 0 and 255
        stream.write(images.encode_jpeg(inside * np.uint8(255)))
    elif i % 4 == 1:
        alpha = np.full_like(mask, 255)
        grey = inside * np.uint8(255)
        Image.fromarray(np.stack([grey, grey, grey, alpha], -1)).save(stream, "PNG")
    elif i % 4 == 2:
        Image.fromarray(inside.astype(np.uint16) * 65535).save(stream, "PNG")
    else:
        stream.write(images.encode_png(inside))
    path.write_bytes(stream.getvalue())


def write(path: pathlib.Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def draw_tb(root):
    rows = ["study_id,sex,age,findings"]
    for i in range(1, 21):
        name = f"CHNCXR_{i:04}_{i % 2}.png"
        put(root / "images/images" / name, i)
        finding = "bilateral PTB, right pleuritis" if i % 2 else "normal"
        rows.append(f'{name},Male,4{i % 10},"{"" if i == 20 else finding}"')
    write(root / "shenzhen_metadata.csv", *rows, rows[1])


def draw_tb_original(root):
    for i in range(1, 21):
        name = f"CHNCXR_{i:04}_{i % 2}"
        put(root / f"ChinaSet_AllFiles/CXR_png/{name}.png", i)
        write(root / f"ChinaSet_AllFiles/ClinicalReadings/{name}.txt", "male 45yrs")


def draw_vindr_cxr(root):
    labels = list(module("vindr_cxr").LABELS)
    rows = {"train": [], "test": []}
    for i in range(16):
        split = "train" if i < 12 else "test"
        image = f"{i * 7919:032x}"
        put(root / split / f"{image}.png", i)
        for reader in range(3 if split == "train" else 1):
            cells = [str(int(reader <= i % 3)), "" if i == 3 else "0"]
            cells += ["0"] * (len(labels) - 2) + ["1"]
            rows[split].append([image, *([f"R{reader}"] * (split == "train")), *cells])
    for split, lines in rows.items():
        head = [*labels, "No finding"]
        if split == "test":
            head[len(labels) - 1] = "Other disease"
        who = ["image_id", *(["rad_id"] * (split == "train"))]
        lines = [",".join(line) for line in [who + head, *lines, lines[0]]]
        write(root / f"annotations/image_labels_{split}.csv", *lines)


NIH_HEAD = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,"
    "View Position,OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"
)


def draw_nih14(root, csv="Data_Entry_2017.csv", folder="images_{:03}/images"):
    rows, listed = [NIH_HEAD], {"train_val": [], "test": []}
    for i in range(24):
        name = f"{i // 2:08}_{i % 2:03}.png"
        finding = ("No Finding", "Hernia", "Mass|Atelectasis", "")[i % 4]
        put(root / folder.format(1 + i % 2) / name, i)
        rows.append(f"{name},{finding},0,{i // 2},58,M,PA,2682,2749,0.143,0.143,")
        listed["test" if i >= 18 else "train_val"].append(name)
    write(root / csv, *rows, rows[1])
    for kind, names in listed.items():
        write(root / f"{kind}_list.txt", *names)


def draw_nih14_v2020(root):
    draw_nih14(root, "Data_Entry_2017_v2020.csv", "images")
    write(root / "Data_Entry_2017.csv", "an older one", "beside it")
    path = root / "Data_Entry_2017_v2020.csv"
    path.write_text(path.read_text().replace("[x,y],", "[x,y]"))


def draw_chestx6(root):
    for split, n in (("train", 3), ("val", 1), ("test", 1)):
        for c in module("chestx6").CLASSES:
            for i in range(n):
                put(root / "chest-xray" / split / c / f"{c} ({i}).jpg", i + n)


def draw_chexchonet(root):
    names = ["slvh", "dlv", "composite_slvh_dlv", "heart_transplant"]
    names += ["lung_transplant", "pacemaker_or_icd"]
    rows = [",".join(["patient_id", "cxr_filename", "age", "sex", *names])]
    for i in range(60):
        put(root / "images" / f"cxr{i}.png", i)
        high = str(int(i // 3 % 3 == 0))
        cells = [high, "0", high, "", "-1" if i == 6 else "0", "1"]
        rows.append(",".join([f"CTR{i // 3}", f"cxr{i}.png", "60", "F", *cells]))
    write(root / "metadata.csv", *rows, rows[1])


def draw_covid_qu_ex(root):
    for part in ("Lung Segmentation Data", "Infection Segmentation Data"):
        for split, n in (("Train", 3), ("Val", 1), ("Test", 1)):
            for c in module("covid_qu_ex").CLASSES:
                for i in range(n):
                    name = f"{c}_{split}_{i}.png"
                    put(root / part / part / split / c / "images" / name, i)
                    put_mask(root / part / part / split / c / "lung masks" / name, i)


def draw_covidx(root):
    lines = {"train": [], "val": [], "test": []}
    for i in range(24):
        split = "train" if i < 16 else ("val" if i < 20 else "test")
        name = f"film {i} of a paper.jpg" if i == 2 else f"{i}.png"
        put(root / split / name, i)
        # Patient p7 is in train and in test.
        patient = "p7" if i == 20 else f"p{i // 2}"
        kind = "positive" if i % 2 else "negative"
        lines[split].append(f"{patient} {name} {kind} bimcv")
    for split, listed in lines.items():
        write(root / f"{split}.txt", *listed, listed[0])


def draw_kermany(root):
    for i in range(24):
        split = "train" if i < 18 else ("val" if i < 20 else "test")
        kind = "bacteria" if i % 4 else "virus"
        sick = f"PNEUMONIA/person{i // 2}_{kind}_{i}.jpeg"
        for film in (sick, f"NORMAL/NORMAL2-IM-{i // 2:04}-0001-000{i % 2}.jpeg"):
            put(root / "chest_xray" / split / film, i)
            put(root / "chest_xray/chest_xray" / split / film, i)  # as Kaggle has it


def draw_qata_cov19(root):
    for folder, first, n in (("Train Set", 0, 20), ("Test Set", 20, 6)):
        for i in range(first, first + n):
            # Three images a subject; the last subject of train has one in test.
            subject = (
                f"sub-S{3000 + i // 3:05}_ses-E0{7000 + i}_run-1_bp-chest_vp-ap_dx"
            )
            name = f"covid_{i}" if i % 7 == 0 else subject
            put(root / "QaTa-COV19-v2" / folder / "Images" / f"{name}.png", i)
            mask = (
                root / "QaTa-COV19-v2" / folder / "Ground-truths" / f"mask_{name}.png"
            )
            put_mask(mask, i)


def draw_cxlseg(root, above="files/p10/p{}/s{}"):
    rows = ["dicom_id,subject_id,study_id,split"]
    for i in range(20):
        split = "train" if i < 12 else ("validate" if i < 16 else "test")
        subject = 10000032 + (0 if i == 15 else i // 2)  # the first is in validate too
        dicom, study = f"{i * 7919:08x}-bde0afdd", 50414267 + i
        rows.append(f"{dicom},{subject},{study},{split}")
        folder = root / above.format(subject, study)
        put(folder / f"{dicom}.jpg", i)
        put_mask(folder / f"{dicom}-mask.jpg", i)
    write(root / "CXLSeg-split.csv", *rows, rows[1])


def draw_cxlseg_unprefixed(root):
    draw_cxlseg(root, "{}/{}")


MIMIC_REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 COMPARISON:  None.

 FINDINGS:  The heart is normal
 in size.

 IMPRESSION:  No acute process.
"""


def draw_mimic_cxr(root):
    """Ten patients of a study each, a frontal and a lateral X-ray in it."""
    head = "subject_id,study_id"
    chexpert = module("mimic_cxr").LABELS
    split = ["dicom_id,study_id,subject_id,split"]
    metadata = [
        "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,"
        "Rows,ViewCodeSequence_CodeMeaning"
    ]
    labels = {k: [",".join([head, *sorted(chexpert)])] for k in ("chexpert", "negbio")}
    for i in range(20):
        subject, study, dicom = 10000032 + i // 2, 50414267 + i // 2, f"d{i:03}-abc"
        part = "train" if i < 12 else ("validate" if i < 16 else "test")
        put(root / f"files/p10/p{subject}/s{study}/{dicom}.jpg", i)
        split.append(f"{dicom},{study},{subject},{part}")
        view = "LATERAL,2544,lateral" if i % 2 else "PA,2544,postero-anterior"
        metadata.append(f"{dicom},{subject},{study},CHEST (PA AND LAT),{view}")
        if i % 2 == 0:
            for kind, edema in (("chexpert", "1.0"), ("negbio", "-1.0")):
                cells = [edema if name == "Edema" else "" for name in sorted(chexpert)]
                labels[kind].append(",".join([str(subject), str(study), *cells]))
            write(
                root / f"mimic-cxr-reports/files/p10/p{subject}/s{study}.txt",
                MIMIC_REPORT,
            )
    write_gz(root / "mimic-cxr-2.0.0-split.csv.gz", *split, split[1])
    write_gz(root / "mimic-cxr-2.0.0-metadata.csv.gz", *metadata)
    for kind, lines in labels.items():
        write_gz(root / f"mimic-cxr-2.0.0-{kind}.csv.gz", *lines)


def draw_mimic_cxr_newer(root):
    """Unpacked tables of another version, all images in one folder, no reports."""
    draw_mimic_cxr(root)
    for path in root.glob("*.csv.gz"):
        newer = root / path.name.replace("2.0.0", "2.1.0").removesuffix(".gz")
        newer.write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    (root / "flat").mkdir()
    for path in [*root.rglob("*.jpg")]:
        path.rename(root / "flat" / path.name)
    shutil.rmtree(root / "mimic-cxr-reports")


PADCHEST_HEAD = (
    ",ImageID,ImageDir,StudyID,PatientID,ViewPosition_DICOM,Projection,"
    "MethodProjection,Report,MethodLabel,Labels"
)
# Findings, projection, and how that was told, in turn.
PADCHEST_ROWS = (
    ("['normal']", "PA", "Manual review of DICOM fields"),
    ("['cardiomegaly', ' pleural effusion', 'scoliosis']", "L", "Manual review"),
    ("['NSG tube', 'normal']", "AP_horizontal", "resnet-50.t7"),
    ("['unchanged', '']", "COSTAL", "Manual review"),
)


def draw_padchest(root, csv="PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv.gz"):
    """Films of 12 bits in PNGs of 16, in two folders."""
    rows = [PADCHEST_HEAD]
    for i in range(24):
        labels, view, how = PADCHEST_ROWS[i % 4]
        name = f"2168{i:03}_x.png"
        put_12_bits(root / str(i % 2) / name, i)
        rows.append(
            f"{i},{name},{i % 2},{7000 + i // 2},{900 + i // 4},,{view},{how},"
            f' sin hallazg . silu card {i} .,Physician,"{labels}"'
        )
    broken = sorted(module("padchest").terms.BROKEN)[0]
    (root / "0" / broken).write_bytes(b"\x89PNG cut off")
    rows.append(f"99,{broken},0,1,1,,PA,Manual review,x,Physician,['normal']")
    put_12_bits(root / "1" / "copy.png", 23)  # the last image, under another name
    rows.append(rows[24].replace("2168023_x.png", "copy.png").replace("23,", "24,", 1))
    write_gz(root / csv, *rows, rows[1])


def draw_padchest_flat(root):
    draw_padchest(root)
    table = next(root.glob("*.gz"))
    table.with_suffix("").write_bytes(gzip.decompress(table.read_bytes()))
    table.unlink()
    (root / "images").mkdir()
    for path in [*root.rglob("*.png")]:
        path.rename(root / "images" / path.name)


def put_12_bits(path: pathlib.Path, i: int = 0) -> None:
    """The film from 800 to 3350, as a detector has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    grey = np.roll(film(), i, 1)
    grey[0, :2] = 0, 255  # all of the film's levels
    levels = grey.astype(np.uint16) * 10 + 800
    Image.fromarray(levels).save(path, "PNG")


OPENI_XML = """<?xml version="1.0" encoding="utf-8"?>
<eCitation><uId id="CXR{n}"/><MedlineCitation><Article><Abstract>
<AbstractText Label="COMPARISON">None.</AbstractText>
<AbstractText Label="FINDINGS">{findings}</AbstractText>
<AbstractText Label="IMPRESSION">Report {n}.</AbstractText>
</Abstract></Article></MedlineCitation><MeSH>{terms}</MeSH>{images}</eCitation>"""
OPENI_TERMS = (
    "<major>normal</major><automatic>opacity</automatic>",
    "<major>Cardiomegaly/borderline</major><major>Opacity/lung/base/left</major>",
    "<major>No Indexing</major>",
    "<major>Catheters, Indwelling/right</major><major>Calcinosis/lung</major>",
)


def draw_openi(root):
    """Twelve reports with two images each, and one without."""
    lines = ["imageid,Bits Stored,View Position"]
    for n in range(1, 14):
        films = [f"CXR{n}_IM-{n:04}-{k}001" for k in (1, 2)] if n < 13 else []
        if n == 1:  # whose images have its number twice, but in the metadata
            films = [f"CXR1_1_IM-0001-{k}001" for k in (1, 2)]
        for k, image in enumerate(films):
            put(root / f"NLMCXR_png/{image}.png", 2 * n + k)
            view = ("", "PA") if n % 4 else ("", "LL")
            lines.append(f"{image.replace('CXR1_1_', 'CXR1_')},12,{view[k]}")
        found = "".join(f'<parentImage id="{image}"/>' for image in films)
        terms = OPENI_TERMS[n % 4]
        text = OPENI_XML.format(n=n, findings="Clear.", terms=terms, images=found)
        write(root / f"ecgen-radiology/{n}.xml", text)
    write_gz(root / "nlmcxr_dicom_metadata.csv.gz", *lines)


def write_gz(path: pathlib.Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode()))


def put_dicom(path: pathlib.Path, i: int = 0, side: int = 0, view: str = "PA") -> None:
    """The film as DICOM, 8 bits; of `side` pixels a side, 0 = its own size."""
    grey = np.roll(film(), i, 1)
    if side:
        grey = np.asarray(Image.fromarray(grey).resize((side, side)))
    path.parent.mkdir(parents=True, exist_ok=True)
    window = {"WindowCenter": 128, "WindowWidth": 256, "ViewPosition": view}
    path.write_bytes(dicom_files.made(grey, 8, allocated=8, **window))


RSNA_CLASSES = ("Lung Opacity", "No Lung Opacity / Not Normal", "Normal")
RSNA_MAPPING = "pneumonia-challenge-dataset-mappings_2018.json"


def draw_rsna_pneumonia(root, mapping=True):
    """Forty images, two of each patient of NIH; one has two boxes and a row twice."""
    boxes, classes = ["patientId,x,y,width,height,Target"], ["patientId,class"]
    entries = []
    for i in range(40):
        image = f"{i * 7919:08x}-5dfa-47a6-9556-0260fd34e921"
        view = "AP" if i % 4 else "PA"
        put_dicom(root / f"stage_2_train_images/{image}.dcm", i, view=view)
        rows = ["264.0,152.0,213.0,379.0,1", "562.0,152.0,256.0,453.0,1"]
        rows = rows[: 1 + (i == 0)] if i % 4 == 0 else [",,,,0"]
        boxes += [f"{image},{row}" for row in rows]
        label = RSNA_CLASSES[0 if i % 4 == 0 else 1 + i % 2]
        classes += [f"{image},{label}"] * len(rows)
        nih = f"{i // 2:08}_{i % 2:03}.png"
        entries.append({"subset_img_id": image, "img_id": nih, "orig_labels": ["x"]})
    put_dicom(root / "stage_2_test_images/0000.dcm")  # whose labels are not published
    write(root / "stage_2_train_labels.csv", *boxes, boxes[1])
    write(root / "stage_2_detailed_class_info.csv", *classes)
    if mapping:
        write(root / RSNA_MAPPING, json.dumps(entries))


def draw_rsna_pneumonia_unmapped(root):
    draw_rsna_pneumonia(root, mapping=False)


def runs_of(mask: np.ndarray) -> str:
    """A mask (h, w) as SIIM-ACR writes it, made apart from data/runs.py."""
    flat = np.concatenate([[0], mask.T.ravel() > 127, [0]]).astype(int)
    edges = np.flatnonzero(np.diff(flat))
    return " ".join(map(str, np.diff(np.concatenate([[0], edges]))))


def draw_siim_acr(root, csv="stage_2_train.csv", none="-1"):
    """Half of 12 images with a mask, of which some have a row for each lung."""
    rows = ["ImageId,EncodedPixels"]
    drawn = Image.fromarray(film_and_mask()[1])
    for i in range(12):
        image = f"1.2.276.0.7230010.3.1.4.8323329.{i}.1517875{i:03}.{i * 97}"
        folder = image.replace("3.1.4", "3.1.2")
        put_dicom(root / f"dicom-images-train/{folder}/a/{image}.dcm", side=1024)
        if i % 2:
            rows.append(f"{image},{none}")
            continue
        mask = np.asarray(drawn.resize((1024, 1024)))
        left = np.arange(1024) < 512
        halves = [mask * left, mask * ~left] if i % 4 else [mask]
        rows += [f"{image},{runs_of(half)}" for half in halves]
    unlisted = "1.2.276.0.7230010.3.1.4.8323329.99.1517875099.99"
    put_dicom(root / f"dicom-images-train/x/a/{unlisted}.dcm", side=1024)
    write(root / csv, *rows, rows[1])


def draw_siim_acr_stage_1(root):
    draw_siim_acr(root, "train-rle.csv", none=" -1")
    text = (root / "train-rle.csv").read_text()
    (root / "train-rle.csv").write_text(text.replace(",Enc", ", Enc"))


def draw_siim_acr_copy(root):
    for split, n in (("train", 10), ("test", 2)):
        rows = ["new_filename,ImageId,has_pneumo"]
        for i in range(n):
            name = f"{i}_{split}_{i % 2}_.png"
            put(root / "png_images" / name, i)
            put_mask(root / "png_masks" / name, i)
            if i % 2 == 0:
                empty = images.encode_png(np.zeros_like(film()))
                (root / "png_masks" / name).write_bytes(empty)
            rows.append(f"{name},1.2.{split == 'test':d}.{i},{i % 2}")
        write(root / f"stage_1_{split}_images.csv", *rows)


TBX_KINDS = ("ActiveTuberculosis", "ObsoletePulmonaryTuberculosis")


def draw_tbx11k(root, annotations="json"):
    """Forty images of train, eight of val; of four with tuberculosis one has no box."""
    for part, n, first in (("train", 40, 0), ("val", 8, 40)):
        lines, pictures, boxes = [], [], []
        for i in range(first, first + n):
            folder = ("health", "sick", "tb", "sick")[i % 4]
            name = f"{folder}/{folder[: 1 + (folder == 'tb')]}{i:04}.png"
            put(root / "imgs" / name, i)
            lines.append(name)
            pictures.append({"id": i, "file_name": name})
            if folder == "tb" and i != 2:  # some of both kinds
                boxes += [(i, 1 + i // 4 % 2)] + [(i, 2)] * (i % 8 == 2)
        boxes += [(6, 3)] if part == "train" else []
        write(root / f"lists/TBX11K_{part}.txt", *lines)
        names = [{"id": i + 1, "name": name} for i, name in enumerate(TBX_KINDS)]
        names.append({"id": 3, "name": "PulmonaryTuberculosis"})
        if annotations == "json":
            keys = [{"image_id": i, "category_id": k, "bbox": []} for i, k in boxes]
            about = {"categories": names, "images": pictures, "annotations": keys}
            write(root / f"annotations/json/TBX11K_{part}.json", json.dumps(about))
            continue
        for i in {i for i, _ in boxes}:
            objects = "".join(
                f"<object><name>{names[k - 1]['name']}</name></object>"
                for j, k in boxes
                if i == j
            )
            xml = f"<annotation>{objects}</annotation>"
            write(root / f"annotations/xml/tb{i:04}.xml", xml)
    put(root / "imgs/test/test_0001.png")  # whose labels are not published


def draw_tbx11k_xml(root):
    draw_tbx11k(root, "xml")


def draw_tbx11k_copy(root):
    rows = ["fname,image_height,image_width,source,bbox,target,tb_type,image_type"]
    box = "\"{'xmin': 1, 'ymin': 2, 'width': 3, 'height': 4}\""
    kinds = ("healthy", "sick_but_no_tb", "tb", "sick_but_no_tb")
    for i in range(48):
        kind, part = kinds[i % 4], "train" if i < 40 else "val"
        name = f"{kind[0]}{i:04}.png"
        put(root / "images" / name, i)
        sick = f"tb,{('active_tb', 'latent_tb')[i // 4 % 2]}"
        told = f"{box},{sick}" if kind == "tb" else "none,no_tb,none"
        rows.append(f"{name},512,512,{part},{told},{kind}")
    write(root / "data.csv", *rows, rows[3])


DRAW = {name: globals()[f"draw_{name}"] for name in CLASSIFIERS}
DRAW |= {"tb/original": draw_tb_original, "nih14/v2020": draw_nih14_v2020}
DRAW |= {"cxlseg/unprefixed": draw_cxlseg_unprefixed}
DRAW |= {"mimic_cxr/newer": draw_mimic_cxr_newer}
DRAW |= {"padchest/flat": draw_padchest_flat}
DRAW |= {"rsna_pneumonia/unmapped": draw_rsna_pneumonia_unmapped}
DRAW |= {"siim_acr/stage_1": draw_siim_acr_stage_1, "siim_acr/copy": draw_siim_acr_copy}
DRAW |= {"tbx11k/xml": draw_tbx11k_xml, "tbx11k/copy": draw_tbx11k_copy}
