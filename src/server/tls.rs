//! HTTPS: the certificate, and the greeting at the beginning of each connection.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject as _};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, ServerConfig};
use tokio_rustls::server::TlsStream;

use crate::config::Http;

/// Longest time for a greeting.
const GREETING: Duration = Duration::from_secs(10);

/// Why HTTPS cannot be spoken. Each text is one sentence that names the file.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or holds nothing of the kind.
    #[error("{what} cannot be read from '{}' ({source}): name a PEM file with {setting}", path.display())]
    File {
        /// What was looked for.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// The setting that names the file.
        setting: &'static str,
        /// What is wrong.
        source: pem::Error,
    },
    /// Certificate and key cannot be used, or not together.
    #[error("the certificate '{}' and the key '{}' cannot be used: {source}", cert.display(), key.display())]
    Unusable {
        /// File of the certificate.
        cert: PathBuf,
        /// File of the key.
        key: PathBuf,
        /// What is wrong.
        source: rustls::Error,
    },
}

/// What connections are greeted with.
#[derive(Clone)]
pub(super) struct Tls(TlsAcceptor);

impl Tls {
    fn read(cert: &Path, key: &Path) -> Result<Self, TlsError> {
        let wrong = |what, path: &Path, setting| {
            let path = path.to_owned();
            move |source| TlsError::File { what, path, setting, source }
        };
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(cert)
            .and_then(Iterator::collect)
            .and_then(|chain: Vec<_>| if chain.is_empty() { Err(pem::Error::NoItemsFound) } else { Ok(chain) })
            .map_err(wrong("a certificate", cert, "--tls-cert"))?;
        let secret = PrivateKeyDer::from_pem_file(key).map_err(wrong("a private key", key, "--tls-key"))?;
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, secret));
        let mut config =
            config.map_err(|source| TlsError::Unusable { cert: cert.to_owned(), key: key.to_owned(), source })?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self(TlsAcceptor::from(Arc::new(config))))
    }

    /// Agrees with a client on the keys of its connection.
    ///
    /// # Errors
    /// When it does not speak TLS, or takes too long.
    pub(super) async fn greet(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        tokio::time::timeout(GREETING, self.0.accept(stream)).await?
    }
}

impl Http {
    /// What HTTPS is spoken with, where it is asked for.
    ///
    /// # Errors
    /// When a file cannot be read, or the two do not belong together.
    pub(super) fn tls(&self) -> Result<Option<Tls>, TlsError> {
        match (&self.tls_cert, &self.tls_key) {
            (Some(cert), Some(key)) => Tls::read(cert, key).map(Some),
            _ => Ok(None),
        }
    }
}
