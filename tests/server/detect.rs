//! From photographs to faces: `decode → detect → align → attributes`. The detector of these tests finds magenta squares.

use std::io::Cursor;

use facewise_core::task::Task;
use futures_util::future::join_all;
use image::codecs::jpeg::JpegEncoder;
use image::metadata::Orientation;
use image::{DynamicImage, ExtendedColorType, ImageEncoder, ImageFormat, Rgb, RgbImage};
use serde_json::{Value, json};

use crate::harness::{ModelsCopy, Spot, TestServer, faces, jpeg, picture, problem};
use crate::onnx::yunet;

const SPOTS: [Spot; 3] = [
    Spot { column: 2, row: 3, green: 32 },
    Spot { column: 7, row: 6, green: 0 },
    Spot { column: 5, row: 2, green: 64 },
];

/// A photograph of 640 × 480 pixels with three faces.
fn group() -> RgbImage {
    faces(picture(640, 480, 1), &SPOTS)
}

pub(crate) fn png(picture: impl Into<DynamicImage>) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    picture.into().write_to(&mut bytes, ImageFormat::Png).unwrap();
    bytes.into_inner()
}

/// Left, top, width and height of each face's box.
fn boxes(answer: &Value) -> Vec<[f64; 4]> {
    let number = |face: &Value, name: &str| face["box"][name].as_f64().unwrap();
    let area = |face| ["x", "y", "width", "height"].map(|name| number(face, name));
    answer["faces"].as_array().unwrap().iter().map(area).collect()
}

fn confidences(answer: &Value) -> Vec<f64> {
    answer["faces"].as_array().unwrap().iter().map(|face| face["confidence"].as_f64().unwrap()).collect()
}

#[track_caller]
fn assert_boxes(answer: &Value, expected: &[[f64; 4]]) {
    let found = boxes(answer);
    assert_eq!(found.len(), expected.len(), "{answer}");
    for (found, expected) in found.iter().zip(expected) {
        let apart = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(apart <= 0.02, "{found:?} is not {expected:?}");
    }
}

#[tokio::test]
async fn every_face_is_answered_the_most_confident_first() {
    let server = TestServer::start(&[]).await;
    let answer = server.answer("?landmarks=true", png(group())).await;
    assert_eq!(answer["image"], json!({"width": 640, "height": 480}));
    let [second, first, third] = SPOTS.map(|spot| spot.area(640, 480));
    assert_boxes(&answer, &[first, second, third]);
    for (found, expected) in confidences(&answer).into_iter().zip([0.993, 0.95, 0.73]) {
        assert!((found - expected).abs() < 0.01, "{found} is not {expected}");
    }
    // Where the template has them on the box.
    let [left, top, side, _] = first;
    let at = |x: f64, y: f64| json!([left + x * side, top + y * side]);
    let landmarks = &answer["faces"][0]["landmarks"];
    for (name, x, y) in [("right_eye", 0.3, 0.37), ("left_eye", 0.7, 0.37), ("nose", 0.5, 0.55), ("mouth", 0.5, 0.77)] {
        let (found, expected) = (&landmarks[name], at(x, y));
        let apart = |axis: usize| (found[axis].as_f64().unwrap() - expected[axis].as_f64().unwrap()).abs();
        assert!(apart(0) < 0.05 && apart(1) < 0.05, "{name}: {found} is not {expected}");
    }
    for face in answer["faces"].as_array().unwrap() {
        assert!(face["age"]["years"].is_number() && face["emotion"]["label"].is_string(), "{face}");
    }
    assert!(answer["timings"]["detect_ms"].as_f64().unwrap() > 0.0);

    let explicit = server.answer("?detect=true", png(group())).await;
    assert_boxes(&explicit, &[first, second, third]);
    assert!(explicit["faces"][0].get("landmarks").is_none(), "only when asked for");
}

#[tokio::test]
async fn a_picture_without_faces_has_an_empty_list() {
    let server = TestServer::start(&[]).await;
    let answer = server.answer("", png(picture(300, 200, 4))).await;
    assert_eq!(answer["faces"], json!([]));
    assert_eq!(answer["timings"]["inference_ms"], 0.0);
    let scrape = server.get("/metrics").send().await.unwrap().text().await.unwrap();
    assert!(scrape.contains("facewise_images_total 1\n") && scrape.contains("facewise_faces_total 0\n"), "{scrape}");
}

#[tokio::test]
async fn faces_are_chosen_by_number_and_confidence() {
    let server = TestServer::start(&["--max-faces", "2"]).await;
    let [second, first, _] = SPOTS.map(|spot| spot.area(640, 480));
    let found = async |query: &str| server.answer(query, png(group())).await;
    assert_boxes(&found("").await, &[first, second]);
    assert_boxes(&found("?max_faces=1").await, &[first]);
    assert_boxes(&found("?min_confidence=0.97").await, &[first]);
    assert_boxes(&found("?min_confidence=1").await, &[]);
    assert_eq!(boxes(&found("?min_confidence=0").await).len(), 2, "the limit holds");
    let response = server.predict("?max_faces=3", png(group())).send().await.unwrap();
    let (status, _, detail) = problem(response).await;
    assert_eq!(status, 400);
    assert!(detail.contains("between 1 and 2"), "{detail}");
}

#[tokio::test]
async fn a_crop_of_one_face_has_exactly_one() {
    let server = TestServer::start(&[]).await;
    let answer = server.answer("?detect=crop&landmarks=true", png(group())).await;
    assert_boxes(&answer, &[SPOTS[1].area(640, 480)]);
    assert!(answer["faces"][0]["landmarks"]["nose"].is_array());

    let square = [80.0, 0.0, 480.0, 480.0];
    let missed = server.answer("?detect=crop&landmarks=true", png(picture(640, 480, 1))).await;
    assert_boxes(&missed, &[square]);
    assert_eq!(missed["faces"][0]["confidence"], 0.0, "the detector found none");
    assert!(missed["faces"][0].get("landmarks").is_none());

    let unseen = server.answer("?detect=false&landmarks=true", png(picture(640, 480, 1))).await;
    assert_boxes(&unseen, &[square]);
    assert_eq!(unseen["faces"][0]["confidence"], 1.0, "nobody looked");
    assert_eq!(unseen["timings"]["detect_ms"], 0.0);
    assert_eq!(unseen["faces"][0]["age"], missed["faces"][0]["age"], "the same crop");
}

#[tokio::test]
async fn the_crop_of_a_face_comes_from_its_keypoints() {
    // Here they place it on the box exactly.
    let server = TestServer::start(&[]).await;
    let spot = Spot::at(3, 4);
    let slopes = RgbImage::from_fn(1440, 1080, |x, y| Rgb([(x / 8) as u8, (128 + y / 12) as u8, ((x + y) / 16) as u8]));
    let photograph = faces(slopes, &[spot]);
    let found = server.answer("", png(photograph.clone())).await;
    assert_boxes(&found, &[spot.area(1440, 1080)]);

    let [left, top, side, _] = spot.area(1440, 1080).map(|number| number as u32);
    let crop = image::imageops::crop_imm(&photograph, left, top, side, side).to_image();
    let given = server.answer("?detect=false", png(crop)).await;
    let elsewhere = server.answer("?detect=false", png(photograph)).await;
    let apart = |answer: &Value| -> f64 {
        let share =
            |answer: &Value, label: &str| answer["faces"][0]["emotion"]["probabilities"][label].as_f64().unwrap();
        let labels = Task::Emotion.labels().iter();
        labels.map(|label| (share(answer, label) - share(&found, label)).abs()).fold(0.0, f64::max)
    };
    let (near, far) = (apart(&given), apart(&elsewhere));
    assert!(near < 0.05 && far > 4.0 * near, "{near} and {far}");
}

/// A JPEG that is displayed as `picture`, and stored as an EXIF orientation wants it.
pub(crate) fn stored(picture: RgbImage, orientation: u8) -> Vec<u8> {
    // Two of the turns undo each other, the others themselves.
    let undo = [1, 2, 3, 4, 5, 8, 7, 6][usize::from(orientation) - 1];
    let mut pixels = DynamicImage::from(picture);
    pixels.apply_orientation(Orientation::from_exif(undo).unwrap());
    let pixels = pixels.into_rgb8();
    // A TIFF header and one directory entry.
    let mut exif = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0".to_vec();
    exif.extend([orientation, 0, 0, 0, 0, 0, 0, 0]);
    let mut bytes = Vec::new();
    let mut encoder = JpegEncoder::new_with_quality(&mut bytes, 98);
    encoder.set_exif_metadata(exif).unwrap();
    encoder.write_image(&pixels, pixels.width(), pixels.height(), ExtendedColorType::Rgb8).unwrap();
    bytes
}

#[tokio::test]
async fn coordinates_are_those_of_the_picture_as_displayed() {
    let server = TestServer::start(&[]).await;
    let [second, first, third] = SPOTS.map(|spot| spot.area(640, 480));
    let mut answers = Vec::new();
    for orientation in 1..=8 {
        let answer = server.answer("?landmarks=true", stored(group(), orientation)).await;
        assert_eq!(answer["image"], json!({"width": 640, "height": 480}), "orientation {orientation}");
        assert_boxes(&answer, &[first, second, third]);
        answers.push(answer["faces"][0]["landmarks"].clone());
    }
    assert!(answers.iter().all(|landmarks| *landmarks == answers[0]), "{answers:?}");
}

#[tokio::test]
async fn every_kind_of_pixels_goes_the_same_way() {
    let server = TestServer::start(&[]).await;
    let [second, first, third] = SPOTS.map(|spot| spot.area(640, 480));
    let all = DynamicImage::from(group());
    let mut glass = all.to_rgba8();
    for pixel in glass.pixels_mut().filter(|pixel| pixel.0[1] > 64) {
        pixel.0[3] = 0;
    }
    for coloured in [DynamicImage::from(glass), all.to_rgb16().into(), all.to_rgba16().into()] {
        assert_boxes(&server.answer("", png(coloured)).await, &[first, second, third]);
    }
    // Without colours there is no magenta.
    let cmyk = include_bytes!("../../core/tests/pictures/cmyk-adobe.jpg").to_vec();
    let ycck = include_bytes!("../../core/tests/pictures/ycck-adobe.jpg").to_vec();
    let pictures = [
        ("gray", png(all.to_luma8())),
        ("gray and alpha", png(all.to_luma_alpha8())),
        ("16-bit gray", png(all.to_luma16())),
        ("CMYK", cmyk),
        ("YCCK", ycck),
    ];
    for (name, bytes) in pictures {
        assert_eq!(server.answer("", bytes.clone()).await["faces"], json!([]), "{name}");
        let crop = server.answer("?detect=crop", bytes).await;
        assert_eq!(crop["faces"].as_array().unwrap().len(), 1, "{name}");
    }
}

#[tokio::test]
async fn pictures_of_any_shape_are_looked_at() {
    let server = TestServer::start(&[]).await;
    for (width, height) in [(1, 1), (8, 8), (1, 300), (4000, 100), (100, 4000)] {
        let name = format!("{width} × {height}");
        let bytes = png(picture(width, height, 2));
        assert_eq!(server.answer("", bytes.clone()).await["faces"], json!([]), "{name}");
        let side = f64::from(width.min(height));
        let square =
            [((f64::from(width) - side) / 2.0).floor(), ((f64::from(height) - side) / 2.0).floor(), side, side];
        for query in ["?detect=crop", "?detect=false"] {
            assert_boxes(&server.answer(query, bytes.clone()).await, &[square]);
        }
        // Nothing but face: as many as do not overlap, in the middle of the square around the picture.
        let all = RgbImage::from_pixel(width, height, Rgb([255, 0, 255]));
        let found = server.answer("?max_faces=1", png(all)).await;
        let longer = f64::from(width.max(height));
        if width == height {
            let [x, y, box_width, box_height] = boxes(&found)[0];
            assert!((box_width - longer / 5.0).abs() < 0.02 && (box_height - box_width).abs() < 0.02, "{name}");
            assert!(x >= -longer / 10.0 && y >= -longer / 10.0 && x.max(y) <= longer, "{name}");
        }
    }
    // A strip whose faces are as high as itself.
    let spots = [Spot::at(1, 4), Spot { column: 8, row: 4, green: 32 }];
    let strip = faces(picture(4000, 800, 3), &spots);
    assert_boxes(&server.answer("", png(strip)).await, &spots.map(|spot| spot.area(4000, 800)));
}

#[tokio::test]
async fn pictures_of_many_requests_get_their_own_faces() {
    let server = TestServer::start(&[]).await;
    let spots: Vec<Spot> = (0..30).map(|index| Spot::at(1 + index % 8, 2 + index / 8)).collect();
    let asks = spots.iter().map(|spot| server.answer("", png(faces(picture(320, 300, spot.column), &[*spot]))));
    for (answer, spot) in join_all(asks).await.iter().zip(&spots) {
        assert_boxes(answer, &[spot.area(320, 300)]);
    }
    let scrape = server.get("/metrics").send().await.unwrap().text().await.unwrap();
    assert!(scrape.contains(r#"facewise_inferences_total{model="face-detector",version="1"} 30"#), "{scrape}");
}

#[tokio::test]
async fn a_larger_detector_finds_smaller_faces() {
    // A quarter of a cell at the usual size, a whole one at twice that.
    let mut small = picture(640, 640, 6);
    for (x, y) in (128..160).flat_map(|x| (320..352).map(move |y| (x, y))) {
        small.put_pixel(x, y, Rgb([255, 0, 255]));
    }
    let usual = TestServer::start(&[]).await;
    assert_eq!(usual.answer("", png(small.clone())).await["faces"], json!([]));
    let larger = TestServer::start(&["--detector-size", "640"]).await;
    assert_boxes(&larger.answer("", png(small)).await, &[[112.0, 304.0, 64.0, 64.0]]);
    let model: Value = larger.get("/v1/models/face-detector").send().await.unwrap().json().await.unwrap();
    assert_eq!(model["input_size"], 640);
}

#[tokio::test]
async fn without_a_detector_a_picture_is_a_crop_of_one_face() {
    let alone = ModelsCopy::new();
    let servers = [TestServer::start(&["--detector", "none"]).await, TestServer::start_with(alone.path(), &[]).await];
    for server in servers {
        assert_boxes(&server.answer("", jpeg(1)).await, &[[15.0, 0.0, 90.0, 90.0]]);
        for query in ["?detect=true", "?detect=crop"] {
            let (status, code, detail) = problem(server.predict(query, jpeg(1)).send().await.unwrap()).await;
            assert_eq!((status, code.as_str()), (400, "bad_request"));
            assert!(detail.contains("no detector"), "{detail}");
        }
        let list: Value = server.get("/v1/models").send().await.unwrap().json().await.unwrap();
        assert_eq!(list["models"].as_array().unwrap().len(), 1);
    }
}

#[tokio::test]
async fn a_detector_of_ones_own_takes_its_place() {
    let models = ModelsCopy::with_detector();
    models.write_detector("yunet", "input", 320, &yunet(320));
    let server = TestServer::start_with(models.path(), &[]).await;
    let answer = server.answer("?landmarks=true", png(group())).await;
    let [second, first, third] = SPOTS.map(|spot| spot.area(640, 480));
    assert_boxes(&answer, &[first, second, third]);
    // Class and object say the same here, so the confidence is theirs.
    for (found, expected) in confidences(&answer).into_iter().zip([0.993, 0.95, 0.73]) {
        assert!((found - expected).abs() < 0.01, "{found} is not {expected}");
    }
    let together = join_all((0..8).map(|_| server.answer("", png(group())))).await;
    assert!(together.iter().all(|answer| boxes(answer) == boxes(&together[0])));
}
