//! `NumPy`'s array files (`.npy`, NEP 1, versions 1 to 3) of floats in C order. What a pickle would be needed for is refused, and
//! nothing in a file is ever run.

/// What every file begins with.
pub const MAGIC: &[u8; 6] = b"\x93NUMPY";

/// A header is a line about an array of floats: a hundred bytes or two. `NumPy` itself refuses more than this.
const MAX_HEADER: usize = 10_000;

/// An array of 32-bit floats.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// Its sides; none is a single number.
    pub shape: Vec<usize>,
    /// Its numbers, the last side running fastest.
    pub values: Vec<f32>,
}

/// Why a file is not read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NpyError {
    /// It does not begin as one, or ends within its header.
    #[error("not a .npy file")]
    NotNpy,
    /// Its format is unknown here.
    #[error("version {0}.{1} of the .npy format is not read here, but 1.0, 2.0 and 3.0 are")]
    Version(u8, u8),
    /// Its header says something else than it should.
    #[error("the header of the .npy file is wrong: {0}")]
    Header(String),
    /// Its numbers are of another kind.
    #[error("a .npy file of '{0}' is not read here: save the array as float32 ('<f4') or float64 ('<f8')")]
    Kind(String),
    /// Its first side runs fastest.
    #[error("the .npy file is in Fortran order: save it with numpy.ascontiguousarray")]
    Fortran,
    /// It has more or fewer numbers than its header says.
    #[error("the .npy file has {found} bytes of numbers, but its header says {expected}")]
    Length {
        /// Bytes that the header says.
        expected: u64,
        /// Bytes that are there.
        found: u64,
    },
}

/// Reads a file.
///
/// # Errors
/// When it is no such file, is cut off, or holds anything but floats in C order.
pub fn read(file: &[u8]) -> Result<Array, NpyError> {
    let rest = file.strip_prefix(MAGIC).ok_or(NpyError::NotNpy)?;
    let (&[major, minor], rest) = rest.split_first_chunk().ok_or(NpyError::NotNpy)?;
    let (length, rest) = match (major, minor) {
        (1, 0) => rest.split_first_chunk().map(|(length, rest)| (u32::from(u16::from_le_bytes(*length)), rest)),
        (2 | 3, 0) => rest.split_first_chunk().map(|(length, rest)| (u32::from_le_bytes(*length), rest)),
        _ => return Err(NpyError::Version(major, minor)),
    }
    .ok_or(NpyError::NotNpy)?;
    let length = length as usize;
    if length > MAX_HEADER {
        return Err(NpyError::Header(format!("it is {length} bytes long")));
    }
    let (header, numbers) = rest.split_at_checked(length).ok_or(NpyError::NotNpy)?;
    let header = str::from_utf8(header).map_err(|_| NpyError::Header("it is not text".into()))?;
    let Header { descr, fortran_order, shape } = Header::parse(header).map_err(NpyError::Header)?;
    let width = match descr.as_str() {
        "<f4" => 4,
        "<f8" => 8,
        _ => return Err(NpyError::Kind(descr)),
    };
    // Of one side or none, both orders are the same.
    if fortran_order && shape.len() > 1 {
        return Err(NpyError::Fortran);
    }
    let count = shape.iter().try_fold(1u64, |count, side| count.checked_mul(*side as u64));
    let expected = count
        .and_then(|count| count.checked_mul(width))
        .ok_or_else(|| NpyError::Header(format!("an array of {shape:?} is larger than any file")))?;
    let found = numbers.len() as u64;
    if found != expected {
        return Err(NpyError::Length { expected, found });
    }
    let values = if width == 4 { singles(numbers) } else { doubles(numbers) };
    Ok(Array { shape, values })
}

/// The file of `values` as rows of so many numbers, as `numpy.save` writes it.
///
/// # Panics
/// If the values are no such rows.
pub fn write(features: usize, values: &[f32]) -> Vec<u8> {
    assert!(features > 0 && values.len().is_multiple_of(features), "{} numbers in rows of {features}", values.len());
    let rows = values.len() / features;
    let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {features}), }}");
    // The numbers begin at a multiple of 64 bytes, and the header ends with a line break.
    let before = MAGIC.len() + 4;
    let length = (before + header.len() + 1).next_multiple_of(64) - before;
    header.extend(std::iter::repeat_n(' ', length - 1 - header.len()));
    header.push('\n');
    let mut file = [MAGIC, &[1, 0][..], &(length as u16).to_le_bytes(), header.as_bytes()].concat();
    file.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    file
}

/// 32-bit floats, least byte first; what fills none at the end is left out.
pub fn singles(bytes: &[u8]) -> Vec<f32> {
    let (numbers, _) = bytes.as_chunks();
    numbers.iter().map(|number| f32::from_le_bytes(*number)).collect()
}

fn doubles(bytes: &[u8]) -> Vec<f32> {
    let (numbers, _) = bytes.as_chunks();
    numbers.iter().map(|number| f64::from_le_bytes(*number) as f32).collect()
}

/// What a header says: the literal of a Python dictionary with these keys and no others.
struct Header {
    descr: String,
    fortran_order: bool,
    shape: Vec<usize>,
}

impl Header {
    fn parse(text: &str) -> Result<Self, String> {
        let mut words = Words(text);
        let (mut descr, mut fortran_order, mut shape) = (None, None, None);
        words.expect("{")?;
        while !words.take("}") {
            let key = words.string()?;
            words.expect(":")?;
            let twice = match key.as_str() {
                "descr" => descr.replace(words.string()?).is_some(),
                "fortran_order" => fortran_order.replace(words.truth()?).is_some(),
                "shape" => shape.replace(words.shape()?).is_some(),
                other => return Err(format!("the key '{other}' is unknown")),
            };
            if twice {
                return Err(format!("'{key}' is there twice"));
            }
            if !words.take(",") {
                words.expect("}")?;
                break;
            }
        }
        if !words.0.trim().is_empty() {
            return Err("it goes on after the dictionary".into());
        }
        let missing = |key| format!("'{key}' is missing");
        Ok(Self {
            descr: descr.ok_or_else(|| missing("descr"))?,
            fortran_order: fortran_order.ok_or_else(|| missing("fortran_order"))?,
            shape: shape.ok_or_else(|| missing("shape"))?,
        })
    }
}

/// What is left of a header.
struct Words<'a>(&'a str);

impl Words<'_> {
    /// Goes past a word, if it is the next one.
    fn take(&mut self, word: &str) -> bool {
        match self.0.trim_start().strip_prefix(word) {
            Some(rest) => {
                self.0 = rest;
                true
            }
            None => false,
        }
    }

    fn expect(&mut self, word: &str) -> Result<(), String> {
        if self.take(word) { Ok(()) } else { Err(format!("'{word}' is missing before '{:.20}'", self.0)) }
    }

    /// A string in quotes, without any escapes: no key and no kind needs them.
    fn string(&mut self) -> Result<String, String> {
        let wrong = || format!("a string is missing before '{:.20}'", self.0);
        let text = self.0.trim_start();
        let quote = text.chars().next().filter(|quote| ['\'', '"'].contains(quote)).ok_or_else(wrong)?;
        let (word, rest) = text[1..].split_once(quote).ok_or_else(wrong)?;
        if word.contains(['\\', '\'', '"', '\n']) {
            return Err(wrong());
        }
        let word = word.to_owned();
        self.0 = rest;
        Ok(word)
    }

    fn truth(&mut self) -> Result<bool, String> {
        if self.take("True") { Ok(true) } else { self.expect("False").map(|()| false) }
    }

    fn shape(&mut self) -> Result<Vec<usize>, String> {
        self.expect("(")?;
        let mut sides = Vec::new();
        while !self.take(")") {
            let text = self.0.trim_start();
            let (digits, rest) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
            sides.push(digits.parse().map_err(|_| format!("'{digits:.20}' is no side of an array"))?);
            self.0 = rest;
            if !self.take(",") {
                if sides.len() == 1 {
                    return Err("a shape of one side is written with a comma".into());
                }
                self.expect(")")?;
                break;
            }
        }
        Ok(sides)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A file as `NumPy` writes it.
    fn file(version: u8, header: &str, numbers: &[u8]) -> Vec<u8> {
        let length = header.len() as u32;
        let length = if version == 1 { (length as u16).to_le_bytes().to_vec() } else { length.to_le_bytes().to_vec() };
        [MAGIC, &[version, 0][..], &length, header.as_bytes(), numbers].concat()
    }

    fn header(descr: &str, order: &str, shape: &str) -> String {
        format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}          \n")
    }

    fn bytes(numbers: &[f32]) -> Vec<u8> {
        numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
    }

    #[test]
    fn floats_are_read_from_each_version() {
        let values = vec![0.5, -1.0, 2.0, 3.25, 0.0, 1e-3];
        for version in 1..=3 {
            let whole = file(version, &header("<f4", "False", "(2, 3)"), &bytes(&values));
            assert_eq!(read(&whole), Ok(Array { shape: vec![2, 3], values: values.clone() }), "version {version}");
        }
        let doubles: Vec<u8> = values.iter().flat_map(|number| f64::from(*number).to_le_bytes()).collect();
        assert_eq!(read(&file(1, &header("<f8", "False", "(6,)"), &doubles)), Ok(Array { shape: vec![6], values }));
        // What NumPy 2.2 writes for numpy.save(file, numpy.float32([[1]])), byte for byte.
        let numpy = b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1), }";
        let padded = [&numpy[..], &b" ".repeat(128 - 1 - numpy.len()), b"\n", &1f32.to_le_bytes()].concat();
        assert_eq!(read(&padded), Ok(Array { shape: vec![1, 1], values: vec![1.0] }));
        assert_eq!(write(1, &[1.0]), padded);
        assert_eq!(read(&write(3, &[0.5; 6])), Ok(Array { shape: vec![2, 3], values: vec![0.5; 6] }));
    }

    #[test]
    fn whatever_else_is_in_a_file_is_refused() {
        let good = header("<f4", "False", "(1, 2)");
        let numbers = bytes(&[1.0, 2.0]);
        let of = |header: &str| read(&file(1, header, &numbers)).expect_err(header).to_string();
        assert_eq!(read(b"PK\x03\x04"), Err(NpyError::NotNpy));
        assert_eq!(read(&file(4, &good, &numbers)), Err(NpyError::Version(4, 0)));
        assert_eq!(read(&file(1, &good, &numbers[1..])), Err(NpyError::Length { expected: 8, found: 7 }));
        assert_eq!(read(&file(1, &good, &[0; 9])), Err(NpyError::Length { expected: 8, found: 9 }));
        let long = read(&file(2, &" ".repeat(20_000), &numbers)).expect_err("long");
        assert_eq!(long, NpyError::Header("it is 20000 bytes long".into()));
        // `O` is Python objects: a pickle would follow.
        for kind in ["|O", ">f4", "<f2", "<i8", "<c8", "<U3"] {
            assert_eq!(of(&header(kind, "False", "(1, 2)")), NpyError::Kind(kind.into()).to_string());
        }
        assert_eq!(of(&header("<f4", "True", "(1, 2)")), NpyError::Fortran.to_string());
        for (header, message) in [
            (good.replace("'shape'", "'form'"), "the key 'form' is unknown"),
            (good.replace("'fortran_order': False, ", ""), "'fortran_order' is missing"),
            (good.replace("'shape'", "'descr'"), "a string is missing"),
            (good.replace("'shape': (1, 2)", "'descr': '<f4'"), "'descr' is there twice"),
            (good.replace("False", "0"), "'False' is missing"),
            (good.replace("(1, 2)", "(-1, 2)"), "is no side"),
            (good.replace("(1, 2)", "(2)"), "with a comma"),
            (good.replace("(1, 2)", "[1, 2]"), "'(' is missing"),
            (good.replace("(1, 2)", "(99999999999, 99999999999)"), "larger than any file"),
            (good.replace("}          ", "} + exit()"), "goes on after"),
            (good.replace("'<f4'", "'\\x3cf4'"), "a string is missing"),
            (good.replace('}', ""), "missing"),
            (String::new(), "'{' is missing"),
        ] {
            let error = of(&header);
            assert!(error.contains(message), "{header}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(tail in prop::collection::vec(any::<u8>(), 0..300), version in 0u8..5) {
            let _ = read(&[&MAGIC[..], &[version, 0], &tail].concat());
            let _ = read(&tail);
        }

        #[test]
        fn any_header_is_read_or_refused(text in "[{}()',:a-z0-9 <_TF]{0,80}") {
            let _ = read(&file(1, &text, &[]));
        }

        #[test]
        fn every_cut_file_is_refused(cut in 0usize..150) {
            let whole = file(1, &header("<f4", "False", "(3, 4)"), &bytes(&[1.0; 12]));
            prop_assume!(cut < whole.len());
            prop_assert!(read(&whole[..cut]).is_err());
        }
    }
}
