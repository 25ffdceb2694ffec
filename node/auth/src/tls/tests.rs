use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use rcgen::ExtendedKeyUsagePurpose;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::testing::{Authority, Issued};

const NODE: &str = "carillon://demo/node/n1";

fn write(folder: &Path, authority: &Authority, own: &Issued) -> TlsFiles {
    let file = |name: &str, text: &str| {
        let path = folder.join(name);
        fs::write(&path, text).expect("written");
        path
    };
    TlsFiles {
        ca: file("ca.pem", &authority.pem),
        own: CertificateFiles {
            certificate: file("own.pem", &own.pem),
            key: file("own.key", &own.key_pem),
        },
        clients: None,
    }
}

/// A node's or somebody else's files; those are of a node only as far as that matters here.
fn party(authority: &Authority, uri: &str, host: &str) -> (tempfile::TempDir, TlsFiles) {
    let folder = tempfile::tempdir().expect("a folder");
    let files = write(folder.path(), authority, &authority.issue(&[uri], &[host]));
    (folder, files)
}

fn node(authority: &Authority) -> Arc<Tls> {
    let (_folder, files) = party(authority, NODE, "127.0.0.1");
    Arc::new(Tls::load("demo", files).expect("usable"))
}

/// What somebody with these certificates meets at a port: what the port learns of it.
async fn meet(
    server: &Arc<Tls>,
    admits: Admits,
    connector: Arc<ClientConfig>,
) -> std::io::Result<Option<Identity>> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let client = tokio::spawn(async move {
        let stream = TcpStream::connect(address).await?;
        let name = rustls::pki_types::ServerName::try_from("127.0.0.1").expect("a name");
        let connector = tokio_rustls::TlsConnector::from(connector);
        let mut stream = connector.connect(name, stream).await?;
        stream.write_all(b"hello").await?;
        stream.flush().await?;
        let mut answer = [0; 2];
        stream.read_exact(&mut answer).await?;
        std::io::Result::Ok(answer)
    });
    let (stream, _) = listener.accept().await?;
    let owner = Arc::new(OnceLock::new());
    let mut stream = Transport::accepted(stream, server.clone(), admits, owner.clone());
    let served = async {
        let mut said = [0; 5];
        stream.read_exact(&mut said).await?;
        assert_eq!(&said, b"hello");
        stream.write_all(b"ok").await?;
        stream.flush().await
    };
    let served = served.await;
    drop(stream);
    let answered = client.await.expect("no panic");
    served?;
    assert_eq!(&answered?, b"ok");
    Ok(owner.get().cloned())
}

fn with_certificate(authority: &Authority, own: &Issued) -> Arc<ClientConfig> {
    client_config(authority, Some(own))
}

fn client_config(authority: &Authority, own: Option<&Issued>) -> Arc<ClientConfig> {
    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let mut roots = rustls::RootCertStore::empty();
    let ca = CertificateDer::from_pem_slice(authority.pem.as_bytes()).expect("PEM");
    roots.add(ca).expect("a root");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots);
    Arc::new(match own {
        None => builder.with_no_client_auth(),
        Some(own) => {
            let key = PrivateKeyDer::from_pem_slice(own.key_pem.as_bytes()).expect("a key");
            let chain = vec![own.certificate.clone()];
            builder.with_client_auth_cert(chain, key).expect("usable")
        }
    })
}

#[tokio::test]
async fn each_port_admits_whom_it_is_for() {
    let authority = Authority::new();
    let server = node(&authority);
    let owned = |uri: &str| with_certificate(&authority, &authority.issue(&[uri], &["x"]));
    for (uri, nodes, operators, clients) in [
        ("carillon://demo/node/n2", true, false, true),
        ("carillon://demo/admin/olga", false, true, true),
        ("carillon://demo/viewer/vera", false, true, true),
        ("carillon://other/node/n2", false, false, false),
        ("carillon://other/admin/olga", false, false, false),
        ("https://example.org", false, false, false),
    ] {
        for (admits, expected) in [
            (Admits::Nodes, nodes),
            (Admits::Operators, operators),
            (Admits::Clients, clients),
        ] {
            let met = meet(&server, admits, owned(uri)).await;
            assert_eq!(met.is_ok(), expected, "{uri} at {admits:?}: {met:?}");
            if let Ok(owner) = met {
                assert_eq!(owner.expect("known").to_string(), uri);
            }
        }
    }
}

#[tokio::test]
async fn who_shows_no_certificate_is_a_client() {
    let authority = Authority::new();
    let server = node(&authority);
    let bare = client_config(&authority, None);
    let met = meet(&server, Admits::Clients, bare.clone())
        .await
        .expect("admitted");
    assert_eq!(met, None);
    for admits in [Admits::Nodes, Admits::Operators] {
        meet(&server, admits, bare.clone())
            .await
            .expect_err("needs a certificate");
    }
}

#[tokio::test]
async fn certificates_of_others_or_of_other_times_or_uses_are_refused() {
    let authority = Authority::new();
    let server = node(&authority);
    let other = Authority::new();
    let wrong_ca = other.issue(&["carillon://demo/node/n2"], &["x"]);
    let expired = authority.issue_with(&["carillon://demo/node/n2"], &["x"], |params| {
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2021, 1, 1);
    });
    let later = authority.issue_with(&["carillon://demo/node/n2"], &["x"], |params| {
        params.not_before = rcgen::date_time_ymd(2190, 1, 1);
        params.not_after = rcgen::date_time_ymd(2191, 1, 1);
    });
    let serves = authority.issue_with(&["carillon://demo/node/n2"], &["x"], |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    });
    for (what, issued) in [
        ("wrong authority", wrong_ca),
        ("expired", expired),
        ("not yet valid", later),
        ("for servers only", serves),
    ] {
        for admits in [Admits::Nodes, Admits::Clients] {
            let met = meet(&server, admits, with_certificate(&authority, &issued)).await;
            met.expect_err(what);
        }
    }
}

/// A listener of a party, which answers one connection of a node.
async fn dialled(authority: &Authority, uri: &str, host: &str) -> std::io::Result<()> {
    let own = authority.issue(&[uri], &[host]);
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    let mut roots = rustls::RootCertStore::empty();
    {
        use rustls::pki_types::CertificateDer;
        use rustls::pki_types::pem::PemObject as _;
        let ca = CertificateDer::from_pem_slice(authority.pem.as_bytes()).expect("PEM");
        roots.add(ca).expect("a root");
    }
    let key = {
        use rustls::pki_types::PrivateKeyDer;
        use rustls::pki_types::pem::PemObject as _;
        PrivateKeyDer::from_pem_slice(own.key_pem.as_bytes()).expect("a key")
    };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![own.certificate.clone()], key)
        .expect("usable");
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let accepting = tokio::spawn(async move {
        let (stream, _) = listener.accept().await?;
        acceptor.accept(stream).await.map(drop)
    });
    let met = node(authority).dial(&address).await.map(drop);
    let _ = accepting.await.expect("no panic");
    met
}

#[tokio::test]
async fn a_node_talks_only_to_nodes_of_its_cluster_at_their_own_hosts() {
    let authority = Authority::new();
    dialled(&authority, "carillon://demo/node/n2", "127.0.0.1")
        .await
        .expect("a node");
    for (uri, host) in [
        ("carillon://demo/admin/olga", "127.0.0.1"),
        ("carillon://other/node/n2", "127.0.0.1"),
        ("https://example.org", "127.0.0.1"),
        ("carillon://demo/node/n2", "127.0.0.2"),
        ("carillon://demo/node/n2", "localhost"),
    ] {
        dialled(&authority, uri, host).await.expect_err(uri);
    }
}

#[tokio::test]
async fn certificates_are_exchanged_while_it_runs() {
    let (old, new) = (Authority::new(), Authority::new());
    let folder = tempfile::tempdir().expect("a folder");
    let own = old.issue(&[NODE], &["127.0.0.1"]);
    let files = write(folder.path(), &old, &own);
    let server = Arc::new(Tls::load("demo", files.clone()).expect("usable"));
    let issue = |authority: &Authority| authority.issue(&["carillon://demo/node/n2"], &["x"]);
    let (by_old, by_new) = (issue(&old), issue(&new));
    assert!(!server.reload().expect("read"), "nothing has changed");
    // A certificate of another key is no certificate of this one.
    fs::write(&files.own.key, &by_old.key_pem).expect("written");
    server.reload().expect_err("the key does not fit");
    meet(&server, Admits::Nodes, with_certificate(&old, &by_old))
        .await
        .expect("as before");
    fs::write(&files.own.key, &own.key_pem).expect("written");
    // Both are trusted while certificates are exchanged, then the new one alone.
    fs::write(&files.ca, format!("{}{}", old.pem, new.pem)).expect("written");
    assert!(server.reload().expect("read"));
    for issued in [&by_old, &by_new] {
        meet(&server, Admits::Nodes, with_certificate(&old, issued))
            .await
            .expect("trusted");
    }
    let own = new.issue(&[NODE], &["127.0.0.1"]);
    write(folder.path(), &new, &own);
    assert!(server.reload().expect("read"));
    meet(&server, Admits::Nodes, with_certificate(&new, &by_new))
        .await
        .expect("trusted");
    let met = meet(&server, Admits::Nodes, with_certificate(&new, &by_old)).await;
    met.expect_err("not trusted any more");
}

#[test]
fn files_that_are_not_a_node_s_are_refused_with_what_is_wrong() {
    let authority = Authority::new();
    for (uri, says) in [
        (
            "carillon://demo/admin/olga",
            "carillon://demo/node/NAME is needed",
        ),
        (
            "carillon://other/node/n1",
            "carillon://demo/node/NAME is needed",
        ),
        ("https://example.org", "names no owner"),
    ] {
        let (_folder, files) = party(&authority, uri, "x");
        let error = Tls::load("demo", files).err().expect("refused").to_string();
        assert!(error.contains(says) && error.contains("own.pem"), "{error}");
    }
    let (_folder, files) = party(&authority, NODE, "x");
    fs::write(&files.ca, "").expect("written");
    let error = Tls::load("demo", files.clone())
        .err()
        .expect("refused")
        .to_string();
    assert!(error.contains("ca.pem: it has no certificate"), "{error}");
    fs::remove_file(&files.ca).expect("removed");
    let error = Tls::load("demo", files).err().expect("refused").to_string();
    assert!(error.contains("cannot be read"), "{error}");
}
