//! The shipped detector and the pictures of `examples/`, whose faces are means of many people.

use std::fs;
use std::path::PathBuf;

use facewise_core::geometry::Rect;
use futures_util::future::join_all;
use image::{DynamicImage, ImageFormat, Rgb, RgbImage, imageops};
use serde_json::{Value, json};

use crate::detect::{png, stored};
use crate::harness::{MODELS, TestServer, encoded, picture, program};

/// Faces of `examples/group.jpg`.
const FACES: usize = 9;

fn examples() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/examples"))
}

fn group() -> Vec<u8> {
    fs::read(examples().join("group.jpg")).unwrap()
}

async fn server() -> TestServer {
    TestServer::start_with(MODELS, &[]).await
}

fn boxes(answer: &Value) -> Vec<Rect> {
    let faces = answer["faces"].as_array().unwrap().iter();
    faces.map(|face| serde_json::from_value(face["box"].clone()).unwrap()).collect()
}

/// Whether these are the same faces, in any order.
#[track_caller]
fn assert_same(found: &[Rect], expected: &[Rect], least_overlap: f32) {
    assert_eq!(found.len(), expected.len(), "{found:?}");
    for area in expected {
        let overlap = found.iter().map(|other| other.iou(area)).fold(0.0, f32::max);
        assert!(overlap >= least_overlap, "{area:?} is not among {found:?}");
    }
}

#[tokio::test]
async fn every_face_of_the_group_is_found() {
    let answer = server().await.answer("?landmarks=true", group()).await;
    let faces = answer["faces"].as_array().unwrap();
    assert_eq!(faces.len(), FACES, "{answer}");
    for (face, area) in faces.iter().zip(boxes(&answer)) {
        let point = |name: &str| [0, 1].map(|axis| face["landmarks"][name][axis].as_f64().unwrap() as f32);
        for [x, y] in ["right_eye", "left_eye", "nose", "mouth"].map(point) {
            assert!((area.x..area.x + area.width).contains(&x), "{face}");
            assert!((area.y..area.y + area.height).contains(&y), "{face}");
        }
        assert!(point("right_eye")[0] < point("left_eye")[0], "the person's own right is to the left: {face}");
        assert!(point("nose")[1] < point("mouth")[1] && point("left_eye")[1] < point("nose")[1], "{face}");
        for task in ["age", "gender", "smile", "emotion"] {
            assert!(face[task].is_object(), "{task} of {face}");
        }
    }
}

#[tokio::test]
async fn each_face_of_the_examples_is_found() {
    let server = server().await;
    for file in fs::read_dir(examples().join("faces")).unwrap() {
        let path = file.unwrap().path();
        let answer = server.answer("?detect=crop", fs::read(&path).unwrap()).await;
        let face = &answer["faces"][0];
        assert!(face["confidence"].as_f64().unwrap() >= 0.5, "{}: {face}", path.display());
    }
}

/// Where the large one is sure of a label; the small one is the same network in 8-bit integers.
#[tokio::test]
async fn the_small_network_answers_like_the_large_one() {
    let server = server().await;
    let (mut labels, mut unequal) = (0, 0);
    for file in fs::read_dir(examples().join("faces")).unwrap() {
        let path = file.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        let ask = async |model| {
            server.answer(&format!("?detect=crop&model={model}"), bytes.clone()).await["faces"][0].clone()
        };
        let (large, small) = (ask("face-attributes").await, ask("face-attributes-small").await);
        let years = |face: &Value| face["age"]["years"].as_f64().unwrap();
        assert!((years(&large) - years(&small)).abs() < 4.0, "{}: {large} {small}", path.display());
        for task in ["gender", "smile", "emotion"] {
            if large[task]["probability"].as_f64().unwrap() > 0.7 {
                labels += 1;
                assert_eq!(small[task]["label"], large[task]["label"], "{}", path.display());
            }
        }
        unequal += usize::from(small["emotion"]["probabilities"] != large["emotion"]["probabilities"]);
    }
    assert!(labels >= 40 && unequal >= 20, "{labels} labels, {unequal} faces with other probabilities");
}

#[tokio::test]
async fn the_group_is_found_however_it_is_stored() {
    let server = server().await;
    let straight = boxes(&server.answer("", group()).await);
    let pixels = image::load_from_memory(&group()).unwrap();
    for orientation in 1..=8 {
        let answer = server.answer("", stored(pixels.to_rgb8(), orientation)).await;
        assert_same(&boxes(&answer), &straight, 0.9);
    }
    let kinds: [DynamicImage; 4] =
        [pixels.to_luma8().into(), pixels.to_luma_alpha8().into(), pixels.to_rgba8().into(), pixels.to_rgb16().into()];
    for kind in kinds {
        assert_same(&boxes(&server.answer("", png(kind)).await), &straight, 0.6);
    }
}

#[tokio::test]
async fn faces_are_found_at_the_end_of_a_panorama_and_in_a_large_photograph() {
    let server = server().await;
    let pixels = image::load_from_memory(&group()).unwrap().into_rgb8();
    let straight = boxes(&server.answer("", group()).await);
    let (width, height) = pixels.dimensions();
    let mut panorama = RgbImage::from_pixel(2 * width, height, Rgb([150, 160, 170]));
    imageops::replace(&mut panorama, &pixels, i64::from(width), 0);
    let shifted: Vec<Rect> = straight.iter().map(|area| Rect { x: area.x + width as f32, ..*area }).collect();
    let larger = TestServer::start_with(MODELS, &["--detector-size", "640"]).await;
    assert_same(&boxes(&larger.answer("", png(panorama)).await), &shifted, 0.7);

    let photograph = imageops::resize(&pixels, 3 * width, 3 * height, imageops::FilterType::Triangle);
    let tripled =
        |area: &Rect| Rect { x: 3.0 * area.x, y: 3.0 * area.y, width: 3.0 * area.width, height: 3.0 * area.height };
    let tripled: Vec<Rect> = straight.iter().map(tripled).collect();
    assert_same(&boxes(&server.answer("", encoded(&photograph, ImageFormat::Jpeg)).await), &tripled, 0.85);
}

/// A JPEG of this size is decoded at half of it, a BMP is not.
#[tokio::test]
async fn a_large_jpeg_is_answered_as_if_all_its_pixels_were_decoded() {
    let server = server().await;
    let pixels = image::load_from_memory(&group()).unwrap().into_rgb8();
    let large = imageops::resize(&pixels, 2560, 1600, imageops::FilterType::Triangle);
    let whole = server.answer("", encoded(&large, ImageFormat::Bmp)).await;
    let years = |answer: &Value| {
        let faces = answer["faces"].as_array().unwrap().iter();
        faces.map(|face| face["age"]["years"].as_f64().unwrap()).sum::<f64>() / FACES as f64
    };
    for orientation in [1, 6] {
        let jpeg = server.answer("", stored(large.clone(), orientation)).await;
        assert_eq!(jpeg["image"], whole["image"]);
        assert_same(&boxes(&jpeg), &boxes(&whole), 0.85);
        assert!((years(&jpeg) - years(&whole)).abs() < 1.0, "{} years, {} years", years(&jpeg), years(&whole));
    }
}

#[tokio::test]
async fn nothing_is_found_where_nobody_is() {
    let server = server().await;
    let gray = RgbImage::from_pixel(500, 400, Rgb([128; 3]));
    let slope = RgbImage::from_fn(640, 480, |x, y| Rgb([(x / 3) as u8, (y / 2) as u8, 90]));
    for nobody in [gray, slope] {
        assert_eq!(server.answer("", png(nobody)).await["faces"], json!([]));
    }
    // In loud patterns a doubtful face may be seen, a sure one may not.
    for pattern in (0..6).map(|seed| picture(640, 480, seed)) {
        assert_eq!(server.answer("?min_confidence=0.7", png(pattern)).await["faces"], json!([]));
    }
}

#[tokio::test]
async fn requests_that_share_runs_get_the_same_answer() {
    let server = server().await;
    let alone = boxes(&server.answer("", group()).await);
    for answer in join_all((0..6).map(|_| server.answer("", group()))).await {
        assert_same(&boxes(&answer), &alone, 0.999);
    }
}

#[test]
fn the_group_is_listed_on_the_command_line() {
    let path = examples().join("group.jpg");
    let output = program(&["predict", path.to_str().unwrap()]).output().unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && table.contains(&format!("  {FACES} faces\n")), "{table}");
    assert_eq!(table.lines().count(), 1 + FACES);
}
