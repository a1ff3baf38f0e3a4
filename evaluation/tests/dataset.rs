//! Sets on disk: the four layouts, every cell of a manifest, every way in which one can be wrong.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};

use facewise_core::geometry::{Landmarks, Point, Rect};
use facewise_core::task::Task;
use facewise_evaluation::{Dataset, DatasetError, Filter, Options, ReadError};
use proptest::prelude::*;
use tempfile::TempDir;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

const MANIFEST: &str = "path,age,gender,smile,emotion,split,note\n\
                        faces/a.jpg,31,female,1,happy,train,\"one, two\"\n\
                        faces/b.jpg,0.5,male,0,neutral,test,\n\
                        c.jpg,,,,,test,no labels\n";

/// What the tests take for pictures; the reader does not look into them.
const PICTURES: [(&str, &[u8]); 3] =
    [("faces/a.jpg", b"bytes of a"), ("faces/b.jpg", b"bytes of b, longer"), ("c.jpg", &[7; 5000])];

fn zip(entries: &[(&str, &[u8])], method: CompressionMethod) -> Vec<u8> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in entries {
        writer.start_file(*name, SimpleFileOptions::default().compression_method(method)).unwrap();
        writer.write_all(bytes).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

fn write(path: &Path, bytes: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

/// A folder that holds one set in each layout: the layout's name and where it is.
fn layouts(manifest: &str) -> (TempDir, Vec<(&'static str, PathBuf)>) {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    let text = ("manifest.csv", manifest.as_bytes());
    let stored = zip(&PICTURES, CompressionMethod::Stored);
    let flat = [&[text], PICTURES.as_slice()].concat();
    let boxed: Vec<_> = flat.iter().map(|(name, bytes)| (format!("set/{name}"), *bytes)).collect();
    let boxed: Vec<_> = boxed.iter().map(|(name, bytes)| (name.as_str(), *bytes)).collect();

    write(&at("folder/manifest.csv"), text.1);
    for (name, bytes) in PICTURES {
        write(&at("folder").join(name), bytes);
    }
    write(&at("folder-and-zip/manifest.csv"), text.1);
    write(&at("folder-and-zip/images.zip"), &stored);
    for (name, bytes) in [
        ("flat-stored.zip", zip(&flat, CompressionMethod::Stored)),
        ("flat-deflated.zip", zip(&flat, CompressionMethod::Deflated)),
        ("in-a-folder.zip", zip(&boxed, CompressionMethod::Deflated)),
        ("nested-stored.zip", zip(&[text, ("images.zip", &stored)], CompressionMethod::Stored)),
        ("nested-deflated.zip", zip(&[text, ("images.zip", &stored)], CompressionMethod::Deflated)),
    ] {
        write(&at(name), &bytes);
    }
    let names = [
        "folder",
        "folder-and-zip",
        "flat-stored.zip",
        "flat-deflated.zip",
        "in-a-folder.zip",
        "nested-stored.zip",
        "nested-deflated.zip",
    ];
    let paths = names.map(|name| (name, at(name))).to_vec();
    (dir, paths)
}

/// The manifest in a folder with the three pictures.
fn open(manifest: &str) -> Result<Dataset, DatasetError> {
    let dir = TempDir::new().unwrap();
    write(&dir.path().join("manifest.csv"), manifest.as_bytes());
    for (name, bytes) in PICTURES {
        write(&dir.path().join(name), bytes);
    }
    Dataset::open(dir.path())
}

#[test]
fn every_layout_reads_alike() {
    let (_dir, layouts) = layouts(MANIFEST);
    for (name, path) in layouts {
        let set = Dataset::open(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(set.name(), name.trim_end_matches(".zip"));
        assert_eq!(set.columns(), ["path", "age", "gender", "smile", "emotion", "split", "note"]);
        assert_eq!(set.tasks(), Task::ALL);
        assert_eq!(set.rows().len(), 3);
        for (row, (path, bytes)) in set.rows().iter().zip(PICTURES) {
            assert_eq!(row.path, path, "{name}");
            assert_eq!(set.read(row).unwrap(), bytes, "{name}: {path}");
        }
    }
}

#[test]
fn many_threads_read_at_once() {
    let pictures: Vec<(String, Vec<u8>)> =
        (0..200u32).map(|i| (format!("{i}.bin"), i.to_le_bytes().repeat(1 + i as usize * 7))).collect();
    let entries: Vec<_> = pictures.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
    let manifest = pictures.iter().fold("path,age\n".to_owned(), |text, (name, _)| text + name + ",20\n");
    for (inner, outer) in [
        (CompressionMethod::Stored, CompressionMethod::Stored),
        (CompressionMethod::Deflated, CompressionMethod::Deflated),
    ] {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("set.zip");
        write(&path, &zip(&[("manifest.csv", manifest.as_bytes()), ("images.zip", &zip(&entries, inner))], outer));
        let set = Dataset::open(&path).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let (set, pictures) = (&set, &pictures);
                scope.spawn(move || {
                    for step in 0..pictures.len() {
                        let index = (step * 31 + thread * 25) % pictures.len();
                        assert_eq!(set.read(&set.rows()[index]).unwrap(), pictures[index].1);
                    }
                });
            }
        });
    }
}

#[test]
fn cells_become_labels() {
    let set = open(MANIFEST).unwrap();
    let [a, b, c] = set.rows() else { panic!("three rows") };
    assert_eq!(
        (a.line, a.labels.age, a.labels.gender, a.labels.smile, a.labels.emotion),
        (2, Some(31.0), Some(0), Some(1), Some(3))
    );
    assert_eq!(
        (b.line, b.labels.age, b.labels.gender, b.labels.smile, b.labels.emotion),
        (3, Some(0.5), Some(1), Some(0), Some(6))
    );
    assert_eq!((c.line, c.labels), (4, facewise_evaluation::Labels::default()));
    assert!(a.labels.has(Task::Age) && a.labels.has(Task::Smile) && !c.labels.has(Task::Emotion));
    assert_eq!(a.cell(set.column("note").unwrap()), "one, two");
    assert_eq!((a.region, a.landmarks), (None, None));
}

#[test]
fn celebas_names_are_a_second_spelling() {
    let set = open("path,Male,Smiling\nc.jpg,1,-1\nc.jpg,0,1\nc.jpg,-1,0\nc.jpg,,\n").unwrap();
    let found: Vec<_> = set.rows().iter().map(|row| (row.labels.gender, row.labels.smile)).collect();
    assert_eq!(found, [(Some(1), Some(0)), (Some(0), Some(1)), (Some(0), Some(0)), (None, None)]);
    assert_eq!(set.tasks(), [Task::Gender, Task::Smile]);

    let both = open("path,Male,gender\nc.jpg,blond,female\n").unwrap();
    assert_eq!(both.rows()[0].labels.gender, Some(0), "the contract's name goes first");
}

#[test]
fn boxes_and_keypoints_are_read_and_may_be_empty() {
    let header = "path,smile,box_x,box_y,box_w,box_h,reye_x,reye_y,leye_x,leye_y,nose_x,nose_y,mouth_x,mouth_y\n";
    let set = open(&format!("{header}c.jpg,1,-5.1,2,73.5,70,1,2,3,4,5,6,7,8.5\nc.jpg,0,,,,,,,,,,,,\n")).unwrap();
    let [full, empty] = set.rows() else { panic!("two rows") };
    assert_eq!(full.region, Some(Rect { x: -5.1, y: 2.0, width: 73.5, height: 70.0 }));
    let landmarks = Landmarks {
        right_eye: Point::new(1.0, 2.0),
        left_eye: Point::new(3.0, 4.0),
        nose: Point::new(5.0, 6.0),
        mouth: Point::new(7.0, 8.5),
    };
    assert_eq!(full.landmarks, Some(landmarks));
    assert_eq!((empty.region, empty.landmarks), (None, None));
}

#[test]
fn what_other_programs_do_to_csv_is_understood() {
    for manifest in [
        "\u{feff}path,smile\r\nc.jpg,1\r\n",
        "smile , path \n1,./c.jpg\n",
        "path,smile\n\"c.jpg\",\" 1 \"\n\n",
        "path,smile\nc.jpg,1",
    ] {
        let set = open(manifest).unwrap_or_else(|error| panic!("{manifest:?}: {error}"));
        assert_eq!((set.rows()[0].path.as_str(), set.rows()[0].labels.smile), ("c.jpg", Some(1)), "{manifest:?}");
    }
}

#[test]
fn every_defect_of_a_manifest_is_named() {
    let cases = [
        ("", "manifest.csv has no column 'path'; it has "),
        ("a,b\n1,2\n", "manifest.csv has no column 'path'; it has a, b"),
        ("path;age\nc.jpg;3\n", "manifest.csv has no column 'path'; it has path;age"),
        (
            "path,split\nc.jpg,x\n",
            "manifest.csv has no label column: none of age, gender, smile, emotion among path, split",
        ),
        ("path,age,age\nc.jpg,1,2\n", "manifest.csv has two columns named 'age'"),
        ("path,age\n", "manifest.csv has no rows"),
        ("path,age\nc.jpg,3\nc.jpg\n", "manifest.csv, line 3: 1 cells instead of the header's 2"),
        ("path,age\nc.jpg,old\n", "manifest.csv, line 2, column 'age': 'old' is not a number"),
        ("path,age\nc.jpg,NaN\n", "manifest.csv, line 2, column 'age': 'NaN' is not a number"),
        ("path,age\nc.jpg,inf\n", "manifest.csv, line 2, column 'age': 'inf' is not a number"),
        ("path,age\nc.jpg,-1\n", "manifest.csv, line 2, column 'age': '-1' is not an age from 0 to 150 years"),
        ("path,age\nc.jpg,1979\n", "manifest.csv, line 2, column 'age': '1979' is not an age from 0 to 150 years"),
        ("path,gender\nc.jpg,f\n", "manifest.csv, line 2, column 'gender': 'f' is not one of female, male"),
        ("path,smile\nc.jpg,2\n", "manifest.csv, line 2, column 'smile': '2' is not one of 0, 1"),
        ("path,smile\nc.jpg,-1\n", "manifest.csv, line 2, column 'smile': '-1' is not one of 0, 1"),
        ("path,Male\nc.jpg,yes\n", "manifest.csv, line 2, column 'Male': 'yes' is not one of -1, 0, 1"),
        (
            "path,emotion\n\"c.jpg\",joy\n",
            "manifest.csv, line 2, column 'emotion': 'joy' is not one of angry, disgust, fear, happy, sad, surprise, neutral",
        ),
        (
            "path,age,box_x,box_y,box_w\nc.jpg,1,1,1,1\n",
            "manifest.csv has no column 'box_h'; it has path, age, box_x, box_y, box_w",
        ),
        ("path,age,nose_x\nc.jpg,1,1\n", "manifest.csv has no column 'reye_x'; it has path, age, nose_x"),
        (
            "path,age,box_x,box_y,box_w,box_h\nc.jpg,1,1,,1,1\n",
            "manifest.csv, line 2, column 'box_y': '' is empty, while its neighbours are not",
        ),
        (
            "path,age,box_x,box_y,box_w,box_h\nc.jpg,1,1,1,1,0\n",
            "manifest.csv, line 2, column 'box_h': '0' is not a positive length",
        ),
        ("path,age\n../c.jpg,3\n", "manifest.csv, line 2: '../c.jpg' is not a path within the set"),
        ("path,age\nfaces/../../c.jpg,3\n", "manifest.csv, line 2: 'faces/../../c.jpg' is not a path within the set"),
        ("path,age\n/etc/passwd,3\n", "manifest.csv, line 2: '/etc/passwd' is not a path within the set"),
        ("path,age\n,3\n", "manifest.csv, line 2: '' is not a path within the set"),
        ("path,age\nc.jpg,3\nfaces/d.jpg,4\n", "manifest.csv, line 3: there is no picture 'faces/d.jpg'"),
        ("path,age\nfaces,3\n", "manifest.csv, line 2: there is no picture 'faces'"),
    ];
    for (manifest, expected) in cases {
        assert_eq!(open(manifest).unwrap_err().to_string(), expected);
    }
}

#[test]
fn a_row_without_its_picture_is_an_error_in_every_layout() {
    let (_dir, layouts) = layouts("path,age\nc.jpg,1\nfaces/z.jpg,2\n");
    for (name, path) in layouts {
        let error = Dataset::open(&path).unwrap_err();
        assert!(
            matches!(&error, DatasetError::MissingPicture { line: 3, path } if path == "faces/z.jpg"),
            "{name}: {error}"
        );
    }
}

#[test]
fn a_manifest_that_is_not_utf_8_is_refused_by_its_line() {
    let dir = TempDir::new().unwrap();
    write(&dir.path().join("manifest.csv"), b"path,age\nc.jpg,1\n\xE9.jpg,2\n");
    assert!(matches!(Dataset::open(dir.path()), Err(DatasetError::Malformed { line: 3, .. })));
}

#[test]
fn what_is_no_set_is_refused() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    write(&at("text.zip"), b"no zip at all");
    write(&at("empty/readme.txt"), b"");
    write(&at("no-manifest.zip"), &zip(&PICTURES, CompressionMethod::Stored));
    write(&at("two.zip"), &zip(&[("a/manifest.csv", b""), ("b/manifest.csv", b"")], CompressionMethod::Stored));
    write(&at("broken/manifest.csv"), MANIFEST.as_bytes());
    write(&at("broken/images.zip"), b"PK\x03\x04 and then nothing");
    let nested: [(&str, &[u8]); 2] = [("manifest.csv", MANIFEST.as_bytes()), ("images.zip", b"nothing")];
    write(&at("nested.zip"), &zip(&nested, CompressionMethod::Deflated));
    let whole = zip(&[("manifest.csv", MANIFEST.as_bytes())], CompressionMethod::Stored);
    write(&at("cut.zip"), &whole[..whole.len() - 10]);

    assert!(matches!(Dataset::open(at("absent")), Err(DatasetError::Open { .. })));
    for name in ["text.zip", "broken", "nested.zip", "cut.zip"] {
        assert!(matches!(Dataset::open(at(name)), Err(DatasetError::Archive { .. })), "{name}");
    }
    for name in ["empty", "no-manifest.zip", "two.zip"] {
        assert!(matches!(Dataset::open(at(name)), Err(DatasetError::NoManifest { .. })), "{name}");
    }
}

#[test]
fn limits_hold() {
    let (_dir, layouts) = layouts(MANIFEST);
    for (name, path) in &layouts {
        let two_rows = Options { max_rows: 2, ..Options::default() };
        assert!(matches!(Dataset::open_with(path, two_rows), Err(DatasetError::TooManyRows { limit: 2 })), "{name}");

        let small = Options { max_rows: 3, max_picture_bytes: 4999, ..Options::default() };
        let set = Dataset::open_with(path, small).unwrap();
        assert!(set.read(&set.rows()[0]).is_ok(), "{name}");
        assert!(matches!(set.read(&set.rows()[2]), Err(ReadError::TooLarge { limit: 4999 })), "{name}");
    }
    let deflated = &layouts.last().unwrap().1;
    let tiny = Options { max_archive_bytes: 100, ..Options::default() };
    let error = Dataset::open_with(deflated, tiny).unwrap_err().to_string();
    assert!(error.contains("larger than 100 bytes"), "{error}");
}

/// A zip of these entries, in whose bytes every occurrence of the one text becomes the other, of the same length.
fn edited(entries: &[(&str, &[u8])], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut bytes = zip(entries, CompressionMethod::Deflated);
    assert_eq!(from.len(), to.len());
    let places: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at..].starts_with(from)).collect();
    assert!(!places.is_empty(), "there is something to edit");
    for at in places {
        bytes[at..at + to.len()].copy_from_slice(to);
    }
    bytes
}

#[test]
fn zips_of_strangers_are_checked_before_they_are_read() {
    let text: (&str, &[u8]) = ("manifest.csv", b"path,age\nc.jpg,1\n");
    let picture: (&str, &[u8]) = ("c.jpg", &[7; 5000]);
    let other: (&str, &[u8]) = ("d.jpg", &[7; 5000]);
    let encrypted = {
        let mut bytes = zip(&[text, picture], CompressionMethod::Stored);
        let at = (0..bytes.len()).rfind(|at| bytes[*at..].starts_with(b"PK\x01\x02")).unwrap();
        bytes[at + 8] |= 1;
        bytes
    };
    let zeros = vec![0; 3_000_000];
    let zeros = zeros.as_slice();
    let nested = zip(&[picture, ("e.jpg", zeros)], CompressionMethod::Deflated);
    let evil: (&str, &[u8]) = ("xx/d.jpg", b"1");
    let (stored, deflated) = (CompressionMethod::Stored, CompressionMethod::Deflated);
    for (name, bytes, says) in [
        ("duplicate", edited(&[text, picture, other], b"d.jpg", b"c.jpg"), "two entries named 'c.jpg'"),
        ("parent", edited(&[text, picture, evil], b"xx/d.jpg", b"../d.jpg"), "'../d.jpg' is not a path within"),
        ("absolute", edited(&[text, picture, evil], b"xx/d.jpg", b"/tmp/jpg"), "'/tmp/jpg' is not a path within"),
        ("encrypted", encrypted, "'c.jpg' is encrypted"),
        ("bomb", zip(&[text, picture, ("b", zeros)], deflated), "unpack to more than 2000000 bytes"),
        ("nested bomb", zip(&[text, ("images.zip", &nested)], stored), "unpack to more than 2000000 bytes"),
        ("many", zip(&[text, picture, other, ("e", b""), ("f", b"")], stored), "more than 4 entries"),
    ] {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("set.zip");
        write(&path, &bytes);
        let options = Options { max_entries: 4, max_unpacked_bytes: 2_000_000, ..Options::default() };
        let error = Dataset::open_with(&path, options).unwrap_err();
        assert!(matches!(error, DatasetError::Archive { .. }), "{name}: {error}");
        assert!(error.to_string().contains(says), "{name}: {error}");
    }
}

/// What announces less than it holds is damaged, and no more of it is unpacked than announced.
#[test]
fn an_entry_that_lies_about_its_size_is_not_believed() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("set.zip");
    let zeros = vec![0; 1_000_000];
    let entries: [(&str, &[u8]); 2] = [("manifest.csv", b"path,age\nc.jpg,1\n"), ("c.jpg", &zeros)];
    write(&path, &edited(&entries, &1_000_000u32.to_le_bytes(), &1000u32.to_le_bytes()));
    let set = Dataset::open(&path).unwrap();
    assert!(matches!(set.read(&set.rows()[0]), Err(ReadError::Entry(_))));
}

/// A directory that claims to hold as many entries as a number can say takes no memory for them.
#[test]
fn a_directory_that_lies_about_its_entries_is_refused() {
    let mut bytes = vec![0; 1000];
    let begin = bytes.len() as u64;
    bytes.extend([b"PK\x06\x06".as_slice(), &44u64.to_le_bytes(), &[0; 12]].concat());
    bytes.extend([u64::MAX, u64::MAX, 40, begin - 40].map(u64::to_le_bytes).concat());
    bytes.extend([b"PK\x06\x07".as_slice(), &[0; 4], &begin.to_le_bytes(), &1u32.to_le_bytes()].concat());
    bytes.extend([b"PK\x05\x06".as_slice(), &[0; 4], &[0xFF; 12], &[0; 2]].concat());
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("set.zip");
    write(&path, &bytes);
    let error = Dataset::open(&path).unwrap_err().to_string();
    assert!(error.contains("more than 400000 entries"), "{error}");
}

/// Names of the time before UTF-8, programs in front of a zip, and the records of zips that are larger than 4 GB.
#[test]
fn unusual_zips_are_read() {
    let picture: (&str, &[u8]) = ("faces/M?ller.jpg", b"bytes");
    let text: (&str, &[u8]) = ("manifest.csv", "path,age\nfaces/Müller.jpg,1\n".as_bytes());
    let plain = edited(&[text, picture], b"M?ller", b"M\x81ller");
    let in_front = [b"#!/bin/sh\n".as_slice(), &plain].concat();
    let wide = {
        // The numbers at the end move into records of their own.
        let (rest, end) = plain.split_at(plain.len() - 22);
        let number = |at: usize| u64::from(u32::from_le_bytes(end[at..at + 4].try_into().unwrap()));
        let mut bytes = [rest, b"PK\x06\x06", &44u64.to_le_bytes(), &[0; 12]].concat();
        bytes.extend([2, 2, number(12), number(16)].map(u64::to_le_bytes).concat());
        bytes.extend(
            [b"PK\x06\x07".as_slice(), &[0; 4], &(rest.len() as u64).to_le_bytes(), &1u32.to_le_bytes()].concat(),
        );
        bytes.extend([&end[..8], &[0xFF; 12], &end[20..]].concat());
        bytes
    };
    for (name, bytes) in [("old name", plain), ("in front", in_front), ("wide", wide)] {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("set.zip");
        write(&path, &bytes);
        let set = Dataset::open(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(set.read(&set.rows()[0]).unwrap(), b"bytes", "{name}");
    }
}

#[test]
fn a_damaged_entry_is_an_error_of_that_picture_alone() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("set.zip");
    let mut bytes =
        zip(&[&[("manifest.csv", MANIFEST.as_bytes())], PICTURES.as_slice()].concat(), CompressionMethod::Stored);
    let at = bytes.windows(10).position(|window| window == b"bytes of a").unwrap();
    bytes[at] = b'B';
    write(&path, &bytes);
    let set = Dataset::open(&path).unwrap();
    assert!(matches!(set.read(&set.rows()[0]), Err(ReadError::File(_) | ReadError::Entry(_))));
    assert!(set.read(&set.rows()[1]).is_ok());
}

#[test]
fn a_set_without_labels_opens_where_none_are_needed() {
    let dir = TempDir::new().unwrap();
    write(&dir.path().join("manifest.csv"), b"path,name\na.jpg,somebody\n");
    write(&dir.path().join("a.jpg"), b"a");
    assert!(matches!(Dataset::open(dir.path()), Err(DatasetError::NoLabelColumn { .. })));
    let set = Dataset::open_with(dir.path(), Options { require_labels: false, ..Options::default() }).unwrap();
    assert_eq!((set.tasks(), set.rows().len()), ([].as_slice(), 1));
}

#[test]
fn filters_choose_rows() {
    let set = open(MANIFEST).unwrap();
    for (filter, lines) in [
        ("", vec![2, 3, 4]),
        ("split=test", vec![3, 4]),
        ("split!=test", vec![2]),
        ("split=test,gender=male", vec![3]),
        ("split=test, gender!=male", vec![4]),
        ("gender=", vec![4]),
        ("age!=", vec![2, 3]),
        ("split=Test", vec![]),
    ] {
        let chosen = set.select(&Filter::parse(filter).unwrap()).unwrap();
        assert_eq!(chosen.iter().map(|row| row.line).collect::<Vec<_>>(), lines, "{filter}");
    }
    let error = set.select(&Filter::parse("usage=test").unwrap()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "there is no column 'usage'; there are path, age, gender, smile, emotion, split, note"
    );
}

proptest! {
    /// Whatever a manifest holds, it is read or refused.
    #[test]
    fn manifests_never_panic(text in r#"(path|age|smile|gender|box_x|[a-z0-9.,"\n\r/ -]){0,60}"#) {
        let _ = open(&text);
        let _ = open(&format!("path,age,smile,note\n{text}"));
    }

    /// Whatever happens to a zip on its way, it is read or refused, and so is each picture.
    #[test]
    fn damaged_zips_never_panic(
        nested in any::<bool>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let pictures = zip(&PICTURES[..2], CompressionMethod::Deflated);
        let text: (&str, &[u8]) = ("manifest.csv", b"path,age\nfaces/a.jpg,1\nfaces/b.jpg,2\n");
        let entries = if nested { vec![text, ("images.zip", &pictures)] } else { vec![text, PICTURES[0], PICTURES[1]] };
        let mut bytes = zip(&entries, CompressionMethod::Stored);
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("set.zip");
        write(&path, &bytes);
        if let Ok(set) = Dataset::open(&path) {
            set.rows().iter().for_each(|row| drop(set.read(row)));
        }
    }
}
