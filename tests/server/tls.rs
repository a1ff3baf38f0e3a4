//! HTTPS, with a certificate that signs itself and is good for this machine and these tests only.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::harness::{TestServer, program};

const CERT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/server/tls/cert.pem");
const KEY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/server/tls/key.pem");

/// What the server answers to a request for its health, spoken to as a browser that trusts the certificate would.
async fn health(server: &TestServer) -> String {
    let address = server.address();
    tokio::task::spawn_blocking(move || ask(address)).await.unwrap()
}

fn ask(address: SocketAddr) -> String {
    let mut trusted = RootCertStore::empty();
    trusted.add(CertificateDer::from_pem_file(CERT).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(trusted)
        .with_no_client_auth();
    let connection = ClientConnection::new(Arc::new(config), ServerName::try_from("localhost").unwrap()).unwrap();
    let mut stream = StreamOwned::new(connection, TcpStream::connect(address).unwrap());
    stream.write_all(b"GET /health/ready HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn https_is_spoken_where_there_is_a_certificate() {
    let server = TestServer::start(&["--tls-cert", CERT, "--tls-key", KEY, "--metrics-listen", "127.0.0.1:0"]).await;
    let answer = health(&server).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains(r#"{"status":"ready"}"#), "{answer}");
    assert!(server.get("/health/ready").send().await.is_err(), "plain HTTP is not understood");
    assert!(health(&server).await.starts_with("HTTP/1.1 200"), "and does no harm");
    assert_eq!(server.get_metrics("/health/ready").send().await.unwrap().status(), 200, "metrics stay plain");
    assert!(server.stop().await);
}

#[test]
fn a_certificate_that_cannot_be_used_is_told() {
    for (cert, key, says) in [
        ("/no/such.pem", KEY, "a certificate cannot be read from '/no/such.pem'"),
        (CERT, "/no/such.pem", "a private key cannot be read from '/no/such.pem'"),
        (KEY, KEY, "a certificate cannot be read"),
        (CERT, CERT, "a private key cannot be read"),
    ] {
        let flags = ["serve", "--log-level", "off", "--listen", "127.0.0.1:0", "--tls-cert", cert, "--tls-key", key];
        let output = program(&flags).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(1) && error.contains(says) && error.contains("--tls-"), "{error}");
    }
}
