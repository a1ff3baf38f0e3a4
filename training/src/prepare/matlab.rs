//! Reads MATLAB files of version 5 (`MAT-File Format`, The MathWorks): the arrays of numbers, texts, cells and structures in them. Other
//! arrays and other versions are refused by name.

use std::io::Read;

use flate2::read::ZlibDecoder;

/// Most bytes that a compressed variable may unpack to.
const LIMIT: u64 = 1 << 30;
/// Cells and structures may lie in each other so deeply.
const DEPTH: usize = 16;

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
pub enum MatlabError {
    /// Not a file of version 5.
    #[error("no MATLAB file of version 5: {0}")]
    Format(&'static str),
    /// The file ends within a value.
    #[error("the file is cut off, or broken at byte {0}")]
    Cut(usize),
    /// Something that this reader does not know.
    #[error("{what} {code} is not supported")]
    Unsupported {
        /// What it is.
        what: &'static str,
        /// Its number in the format.
        code: u32,
    },
    /// A compressed variable is damaged, or unpacks to too much.
    #[error("a compressed variable cannot be unpacked: {0}")]
    Packed(String),
}

/// An array.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Numbers of any type, column by column.
    Numbers(Vec<f64>),
    /// A text.
    Text(String),
    /// Arrays, column by column.
    Cells(Vec<Value>),
    /// A structure of size 1×1: its fields in their order.
    Struct(Vec<(String, Value)>),
}

impl Value {
    /// A field of a structure.
    pub fn field(&self, name: &str) -> Option<&Self> {
        match self {
            Self::Struct(fields) => fields.iter().find(|(known, _)| known == name).map(|(_, value)| value),
            _ => None,
        }
    }

    /// The numbers of an array of them.
    pub fn numbers(&self) -> Option<&[f64]> {
        match self {
            Self::Numbers(numbers) => Some(numbers),
            _ => None,
        }
    }

    /// The cells of an array of them.
    pub fn cells(&self) -> Option<&[Self]> {
        match self {
            Self::Cells(cells) => Some(cells),
            _ => None,
        }
    }

    /// The text.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }
}

// Types of data elements.
const INT8: u32 = 1;
const UINT8: u32 = 2;
const UINT16: u32 = 4;
const INT32: u32 = 5;
const UINT32: u32 = 6;
const MATRIX: u32 = 14;
const COMPRESSED: u32 = 15;
const UTF8: u32 = 16;

// Classes of arrays.
const CELL: u32 = 1;
const STRUCT: u32 = 2;
const CHAR: u32 = 4;

/// The variables of a file by name, in their order.
///
/// # Errors
/// When it is no such file, damaged, or holds what this reader does not know.
pub fn read(bytes: &[u8]) -> Result<Vec<(String, Value)>, MatlabError> {
    let header = bytes.get(..128).ok_or(MatlabError::Format("it has no header"))?;
    match &header[124..] {
        [0, 1, b'I', b'M'] => {}
        [1, 0, b'M', b'I'] => return Err(MatlabError::Format("its bytes are in the order of other machines")),
        [0, 2, ..] => return Err(MatlabError::Format("it is of version 7.3; save it with -v7")),
        _ => return Err(MatlabError::Format("its header says something else")),
    }
    let mut file = Bytes { bytes, at: 128 };
    let mut variables = Vec::new();
    while file.at < bytes.len() {
        let (kind, data) = file.element()?;
        match kind {
            COMPRESSED => {
                let mut unpacked = Vec::new();
                let packed = |error: std::io::Error| MatlabError::Packed(error.to_string());
                let mut reader = ZlibDecoder::new(data).take(LIMIT + 1);
                reader.read_to_end(&mut unpacked).map_err(packed)?;
                if unpacked.len() as u64 > LIMIT {
                    return Err(MatlabError::Packed(format!("it has more than {LIMIT} bytes")));
                }
                let mut inner = Bytes { bytes: &unpacked, at: 0 };
                match inner.element()? {
                    (MATRIX, data) => variables.push(array(data, 0)?),
                    (code, _) => return Err(MatlabError::Unsupported { what: "data type", code }),
                }
            }
            MATRIX => variables.push(array(data, 0)?),
            code => return Err(MatlabError::Unsupported { what: "data type", code }),
        }
    }
    Ok(variables)
}

struct Bytes<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Bytes<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], MatlabError> {
        let end = self.at.checked_add(length).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or(MatlabError::Cut(self.at))?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn number(&mut self) -> Result<u32, MatlabError> {
        let at = self.at;
        let bytes: [u8; 4] = self.take(4)?.try_into().map_err(|_| MatlabError::Cut(at))?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// Type and data of the next element. Up to four bytes lie in the tag itself; others begin and end at multiples of eight.
    fn element(&mut self) -> Result<(u32, &'a [u8]), MatlabError> {
        let tag = self.number()?;
        if tag >> 16 != 0 {
            let length = (tag >> 16) as usize;
            let data = self.take(4)?;
            return Ok((tag & 0xffff, data.get(..length).ok_or(MatlabError::Cut(self.at))?));
        }
        let length = self.number()? as usize;
        let data = self.take(length)?;
        if tag != COMPRESSED {
            // The last element of a file may do without its padding.
            self.at = self.at.next_multiple_of(8).min(self.bytes.len());
        }
        Ok((tag, data))
    }
}

/// Name and value of an array, from the inside of its element.
fn array(data: &[u8], depth: usize) -> Result<(String, Value), MatlabError> {
    if data.is_empty() {
        return Ok((String::new(), Value::Numbers(Vec::new())));
    }
    if depth > DEPTH {
        return Err(MatlabError::Unsupported { what: "a depth of", code: DEPTH as u32 + 1 });
    }
    let mut inside = Bytes { bytes: data, at: 0 };
    let (_, flags) = inside.element()?;
    let class = u32::from(*flags.first().ok_or(MatlabError::Cut(0))?);
    let (kind, sides) = inside.element()?;
    let sides = numbers(kind, sides)?;
    let count = sides.iter().fold(1.0, |count, side| count * side) as usize;
    let (_, name) = inside.element()?;
    let name = String::from_utf8_lossy(name).into_owned();
    let mut nested = |count: usize| {
        // A broken count must not reserve memory for more than there can be.
        let mut values = Vec::with_capacity(count.min(data.len() / 8));
        for _ in 0..count {
            match inside.element()? {
                (MATRIX, data) => values.push(array(data, depth + 1)?.1),
                (code, _) => return Err(MatlabError::Unsupported { what: "data type", code }),
            }
        }
        Ok(values)
    };
    let value = match class {
        CELL => Value::Cells(nested(count)?),
        STRUCT if count == 1 => {
            let (kind, length) = inside.element()?;
            let length = numbers(kind, length)?.first().map_or(0, |length| *length as usize);
            let (_, names) = inside.element()?;
            if length == 0 {
                return Err(MatlabError::Cut(inside.at));
            }
            let names: Vec<String> = names
                .chunks(length)
                .map(|name| String::from_utf8_lossy(name.split(|byte| *byte == 0).next().unwrap_or_default()).into())
                .collect();
            let mut fields = Vec::with_capacity(names.len());
            for name in names {
                let (kind, data) = inside.element()?;
                if kind != MATRIX {
                    return Err(MatlabError::Unsupported { what: "data type", code: kind });
                }
                fields.push((name, array(data, depth + 1)?.1));
            }
            Value::Struct(fields)
        }
        CHAR => {
            let (kind, data) = inside.element()?;
            match kind {
                UINT16 => {
                    let units: Vec<u16> = data.as_chunks().0.iter().map(|unit| u16::from_le_bytes(*unit)).collect();
                    Value::Text(String::from_utf16_lossy(&units))
                }
                INT8 | UINT8 | UTF8 => Value::Text(String::from_utf8_lossy(data).into_owned()),
                code => return Err(MatlabError::Unsupported { what: "a text of data type", code }),
            }
        }
        // Doubles, singles and whole numbers.
        6..=15 => {
            let (kind, data) = inside.element()?;
            let values = numbers(kind, data)?;
            if values.len() != count {
                return Err(MatlabError::Cut(inside.at));
            }
            Value::Numbers(values)
        }
        code => return Err(MatlabError::Unsupported { what: "an array of class", code }),
    };
    Ok((name, value))
}

fn numbers(kind: u32, data: &[u8]) -> Result<Vec<f64>, MatlabError> {
    fn each<const N: usize>(data: &[u8], number: impl Fn([u8; N]) -> f64) -> Vec<f64> {
        data.as_chunks::<N>().0.iter().map(|bytes| number(*bytes)).collect()
    }
    Ok(match kind {
        INT8 => each(data, |bytes| i8::from_le_bytes(bytes).into()),
        UINT8 => each(data, |bytes| u8::from_le_bytes(bytes).into()),
        3 => each(data, |bytes| i16::from_le_bytes(bytes).into()),
        UINT16 => each(data, |bytes| u16::from_le_bytes(bytes).into()),
        INT32 => each(data, |bytes| i32::from_le_bytes(bytes).into()),
        UINT32 => each(data, |bytes| u32::from_le_bytes(bytes).into()),
        7 => each(data, |bytes| f32::from_le_bytes(bytes).into()),
        9 => each(data, f64::from_le_bytes),
        12 => each(data, |bytes| i64::from_le_bytes(bytes) as f64),
        13 => each(data, |bytes| u64::from_le_bytes(bytes) as f64),
        code => return Err(MatlabError::Unsupported { what: "numbers of data type", code }),
    })
}

/// Writes what [`read`] reads, for tests.
#[cfg(test)]
pub(super) mod writing {
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::ZlibEncoder;

    use super::*;

    pub(crate) fn element(kind: u32, data: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        if !data.is_empty() && data.len() <= 4 {
            bytes.extend(((data.len() as u32) << 16 | kind).to_le_bytes());
            bytes.extend(data);
        } else {
            bytes.extend(kind.to_le_bytes());
            bytes.extend((data.len() as u32).to_le_bytes());
            bytes.extend(data);
        }
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }

    pub(crate) fn matrix(name: &str, value: &Value) -> Vec<u8> {
        let (class, count) = match value {
            Value::Numbers(numbers) => (6, numbers.len()),
            Value::Text(text) => (CHAR, text.encode_utf16().count()),
            Value::Cells(cells) => (CELL, cells.len()),
            Value::Struct(_) => (STRUCT, 1),
        };
        let mut inside = element(UINT32, &[&[class as u8, 0, 0, 0][..], &[0; 4]].concat());
        let sides = [1, count as i32];
        inside.extend(element(INT32, &sides.iter().flat_map(|side| side.to_le_bytes()).collect::<Vec<_>>()));
        inside.extend(element(INT8, name.as_bytes()));
        match value {
            Value::Numbers(numbers) => {
                inside.extend(element(9, &numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<_>>()));
            }
            Value::Text(text) => {
                inside.extend(element(UINT16, &text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>()));
            }
            Value::Cells(cells) => cells.iter().for_each(|cell| inside.extend(matrix("", cell))),
            Value::Struct(fields) => {
                inside.extend(element(INT32, &32_i32.to_le_bytes()));
                let mut names = Vec::new();
                for (name, _) in fields {
                    names.extend(name.as_bytes());
                    names.resize(names.len().next_multiple_of(32), 0);
                }
                inside.extend(element(INT8, &names));
                for (_, value) in fields {
                    inside.extend(matrix("", value));
                }
            }
        }
        element(MATRIX, &inside)
    }

    /// A file with one variable, packed or not.
    pub(crate) fn file(name: &str, value: &Value, packed: bool) -> Vec<u8> {
        let mut bytes = vec![b' '; 124];
        bytes.extend([0, 1, b'I', b'M']);
        let variable = matrix(name, value);
        if packed {
            let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
            encoder.write_all(&variable).expect("into memory");
            let data = encoder.finish().expect("into memory");
            bytes.extend(COMPRESSED.to_le_bytes());
            bytes.extend((data.len() as u32).to_le_bytes());
            bytes.extend(data);
        } else {
            bytes.extend(variable);
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::writing::file;
    use super::*;

    fn value() -> Value {
        Value::Struct(vec![
            ("dob".to_owned(), Value::Numbers(vec![693_726.0, f64::NAN, -1.5])),
            ("one".to_owned(), Value::Numbers(vec![7.0])),
            ("none".to_owned(), Value::Numbers(vec![])),
            (
                "full_path".to_owned(),
                Value::Cells(vec![Value::Text("01/ä.jpg".to_owned()), Value::Text("b".to_owned())]),
            ),
        ])
    }

    #[test]
    fn structures_of_cells_texts_and_numbers_are_read() {
        for packed in [false, true] {
            let variables = read(&file("imdb", &value(), packed)).expect("whole");
            assert_eq!(variables[0].0, "imdb");
            let read = &variables[0].1;
            assert_eq!(format!("{read:?}"), format!("{:?}", value()));
            assert_eq!(read.field("full_path").and_then(Value::cells).expect("cells")[0].text(), Some("01/ä.jpg"));
            assert_eq!(read.field("one").and_then(Value::numbers), Some(&[7.0][..]));
            assert!(read.field("two").is_none());
        }
    }

    #[test]
    fn other_files_are_refused_by_what_they_are() {
        let error = |bytes: &[u8]| read(bytes).expect_err("refused").to_string();
        assert!(error(b"PK").contains("no header"));
        let mut newer = file("x", &value(), false);
        newer[125] = 2;
        assert!(error(&newer).contains("-v7"));
        let sparse = file("x", &Value::Numbers(vec![1.0]), false);
        let at = sparse.iter().skip(128).position(|byte| *byte == 6).expect("its flags") + 128;
        let mut sparse = sparse;
        // The first 6 is the type of the flags, 8 bytes before their class.
        sparse[at + 8] = 5;
        assert!(error(&sparse).contains("an array of class 5 is not supported"), "{}", error(&sparse));
        let whole = file("x", &value(), false);
        assert!(matches!(read(&whole[..whole.len() - 9]), Err(MatlabError::Cut(_))));
    }

    proptest! {
        #[test]
        fn damage_is_an_error_and_never_a_panic(at in 128_usize..600, byte: u8, packed: bool, length in 128_usize..700) {
            let mut bytes = file("imdb", &value(), packed);
            bytes.truncate(length);
            let at = at % bytes.len();
            bytes[at] = byte;
            let _ = read(&bytes);
        }
    }
}
