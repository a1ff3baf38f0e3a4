//! The manifest inside an ONNX file. Files are taken apart only at their outermost level, so that everything else in them, also what
//! [`super::messages`] does not know, keeps its bytes.

use std::fs;
use std::path::{Path, PathBuf};

use facewise_core::manifest::METADATA_KEY;
use prost::Message;
use prost::bytes::Buf;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, message, skip_field};

use super::messages::StringStringEntryProto;

/// Field number of `ModelProto.metadata_props`.
const METADATA_PROPS: u32 = 14;

/// Why a file's manifest cannot be read or replaced.
#[derive(Debug, thiserror::Error)]
pub enum MetadataError {
    /// The file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The bytes are not an ONNX model.
    #[error("{}: not an ONNX file: {source}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Where the protocol buffer breaks off.
        source: prost::DecodeError,
    },
}

/// The JSON embedded in an ONNX file; none if it has no manifest.
///
/// # Errors
/// If the file cannot be read or is not an ONNX model.
pub fn manifest(path: &Path) -> Result<Option<String>, MetadataError> {
    let (_, found) = split(&read(path)?).map_err(|source| MetadataError::Format { path: path.to_owned(), source })?;
    Ok(found)
}

/// Embeds `json` in an ONNX file in place of the manifest that it has; the rest of the file stays as it is.
///
/// The file is replaced in one step, so that a reader sees either the old or the new one.
///
/// # Errors
/// If the file cannot be read or written, or is not an ONNX model.
pub fn replace_manifest(path: &Path, json: &str) -> Result<(), MetadataError> {
    let (mut bytes, _) =
        split(&read(path)?).map_err(|source| MetadataError::Format { path: path.to_owned(), source })?;
    let entry = StringStringEntryProto { key: METADATA_KEY.to_owned(), value: json.to_owned() };
    message::encode(METADATA_PROPS, &entry, &mut bytes);
    let temporary = path.with_extension("onnx.tmp");
    fs::write(&temporary, &bytes)
        .and_then(|()| fs::rename(&temporary, path))
        .map_err(|source| MetadataError::Io { path: path.to_owned(), source })
}

fn read(path: &Path) -> Result<Vec<u8>, MetadataError> {
    fs::read(path).map_err(|source| MetadataError::Io { path: path.to_owned(), source })
}

/// A model's bytes without its manifest, and the manifest.
fn split(model: &[u8]) -> Result<(Vec<u8>, Option<String>), prost::DecodeError> {
    let (mut rest, mut found) = (Vec::with_capacity(model.len()), None);
    let mut buffer = model;
    while buffer.has_remaining() {
        let field = buffer;
        let (tag, wire_type) = decode_key(&mut buffer)?;
        let mut content = buffer;
        skip_field(wire_type, tag, &mut buffer, DecodeContext::default())?;
        if (tag, wire_type) == (METADATA_PROPS, WireType::LengthDelimited) {
            let length = decode_varint(&mut content)? as usize;
            let entry = StringStringEntryProto::decode(&content[..length])?;
            if entry.key == METADATA_KEY {
                found = Some(entry.value);
                continue;
            }
        }
        rest.extend_from_slice(&field[..field.len() - buffer.len()]);
    }
    Ok((rest, found))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::onnx::messages::ModelProto;

    fn entry(key: &str, value: &str) -> StringStringEntryProto {
        StringStringEntryProto { key: key.to_owned(), value: value.to_owned() }
    }

    /// A model with foreign metadata and a field that the messages here do not know (`doc_string`, 6).
    fn model(manifest: Option<&str>) -> (tempfile::TempDir, PathBuf) {
        let mut model = ModelProto { ir_version: 8, ..ModelProto::default() };
        model.metadata_props.extend([entry("author", "somebody")]);
        model.metadata_props.extend(manifest.map(|json| entry(METADATA_KEY, json)));
        let mut bytes = model.encode_to_vec();
        prost::encoding::string::encode(6, &"about".to_owned(), &mut bytes);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.onnx");
        fs::write(&path, bytes).unwrap();
        (folder, path)
    }

    #[test]
    fn a_manifest_is_replaced_and_the_rest_stays() {
        let (_folder, path) = model(Some("{\"old\": 1}"));
        let (_other, without) = model(None);
        assert_eq!(manifest(&path).unwrap().as_deref(), Some("{\"old\": 1}"));
        replace_manifest(&path, "{\"new\": 2}").unwrap();
        replace_manifest(&path, "{\"new\": 3}").unwrap();
        assert_eq!(manifest(&path).unwrap().as_deref(), Some("{\"new\": 3}"));
        let (rest, _) = split(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(rest, fs::read(&without).unwrap());
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn a_file_without_manifest_gets_one() {
        let (_folder, path) = model(None);
        assert_eq!(manifest(&path).unwrap(), None);
        replace_manifest(&path, "{}").unwrap();
        assert_eq!(manifest(&path).unwrap().as_deref(), Some("{}"));
    }

    #[test]
    fn what_is_not_a_model_is_named() {
        let (_folder, path) = model(Some("{}"));
        let bytes = fs::read(&path).unwrap();
        for broken in [b"JFIF".as_slice(), &bytes[..bytes.len() - 3]] {
            fs::write(&path, broken).unwrap();
            let error = manifest(&path).unwrap_err().to_string();
            assert!(error.contains("model.onnx: not an ONNX file"), "{error}");
        }
        assert!(matches!(manifest(Path::new("nowhere.onnx")), Err(MetadataError::Io { .. })));
    }
}
