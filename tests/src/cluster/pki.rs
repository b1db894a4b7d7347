//! Certificates and kubeconfigs of the cluster's own programs.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use serde_json::json;

use super::network::{CONTROL, Families, KUBERNETES, node_addresses, node_v4};

/// The cluster's certificate authority, and the folder with all that it has issued.
#[derive(Debug)]
pub(super) struct Pki {
    folder: PathBuf,
    issuer: Issuer<'static, KeyPair>,
    families: Families,
}

/// Who a certificate is of: its common name, and the groups that it is in.
struct Subject<'a> {
    name: &'a str,
    group: Option<&'a str>,
}

impl Pki {
    /// Makes the authority, the API server's certificate, the key of ServiceAccounts' tokens, and a kubeconfig for each
    /// program of the control plane and the administrator.
    pub(super) fn create(folder: &Path, families: Families) -> Result<Self> {
        let folder = folder.join("pki");
        fs::create_dir_all(&folder).context("cannot make the folder for certificates")?;
        let mut params = CertificateParams::default();
        params.distinguished_name = named(&Subject { name: "kubernetes-ca", group: None });
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().context("the authority's key")?;
        let certificate = params.self_signed(&key).context("the authority's certificate")?;
        write(&folder.join("ca.crt"), &certificate.pem())?;
        let pki = Self { folder, issuer: Issuer::new(params, key), families };
        pki.issue_api_server()?;
        let tokens = KeyPair::generate().context("the key of tokens")?;
        write(&pki.file("tokens.key"), &tokens.serialize_pem())?;
        write(&pki.file("tokens.pub"), &tokens.public_key_pem())?;
        for (file, name, group) in [
            ("admin", "admin", Some("system:masters")),
            ("controller-manager", "system:kube-controller-manager", None),
            ("scheduler", "system:kube-scheduler", None),
            ("proxy", "system:kube-proxy", None),
        ] {
            pki.issue(file, &Subject { name, group }, Vec::new())?;
            pki.write_kubeconfig(file)?;
        }
        Ok(pki)
    }

    fn issue_api_server(&self) -> Result<()> {
        let names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost"];
        let mut sans = Vec::new();
        for name in names {
            sans.push(SanType::DnsName(name.try_into().context("a name of the API server")?));
        }
        for ip in [CONTROL, KUBERNETES, std::net::Ipv4Addr::LOCALHOST] {
            sans.push(SanType::IpAddress(ip.into()));
        }
        self.issue("api-server", &Subject { name: "kube-apiserver", group: None }, sans)
    }

    /// A node's certificate, for its kubelet as server and as client, and the kubelet's kubeconfig.
    pub(super) fn issue_node(&self, number: u8) -> Result<()> {
        let node = format!("node{number}");
        let mut sans = vec![SanType::DnsName(node.as_str().try_into().context("the node's name")?)];
        sans.extend(node_addresses(number, self.families).into_iter().map(SanType::IpAddress));
        let name = format!("system:node:{node}");
        self.issue(&node, &Subject { name: &name, group: Some("system:nodes") }, sans)?;
        self.write_kubeconfig(&node)
    }

    fn issue(&self, file: &str, subject: &Subject<'_>, sans: Vec<SanType>) -> Result<()> {
        let mut params = CertificateParams::default();
        params.distinguished_name = named(subject);
        params.subject_alt_names = sans;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate().with_context(|| format!("the key of {file}"))?;
        let certificate =
            params.signed_by(&key, &self.issuer).with_context(|| format!("the certificate of {file}"))?;
        write(&self.certificate(file), &certificate.pem())?;
        write(&self.key(file), &key.serialize_pem())
    }

    /// JSON is YAML.
    fn write_kubeconfig(&self, file: &str) -> Result<()> {
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "adit",
            "clusters": [{ "name": "adit", "cluster": {
                "server": format!("https://{CONTROL}:6443"), "certificate-authority": self.authority(),
            }}],
            "users": [{ "name": file, "user": {
                "client-certificate": self.certificate(file), "client-key": self.key(file),
            }}],
            "contexts": [{ "name": "adit", "context": { "cluster": "adit", "user": file } }],
        });
        write(&self.kubeconfig(file), &config.to_string())
    }

    /// The authority's certificate.
    pub(super) fn authority(&self) -> PathBuf {
        self.file("ca.crt")
    }

    /// A certificate.
    pub(super) fn certificate(&self, of: &str) -> PathBuf {
        self.file(&format!("{of}.crt"))
    }

    /// Its key.
    pub(super) fn key(&self, of: &str) -> PathBuf {
        self.file(&format!("{of}.key"))
    }

    /// A kubeconfig with both.
    pub(super) fn kubeconfig(&self, of: &str) -> PathBuf {
        self.file(&format!("{of}.kubeconfig"))
    }

    /// Any file of this name.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

fn named(subject: &Subject<'_>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    if let Some(group) = subject.group {
        name.push(DnType::OrganizationName, group);
    }
    name.push(DnType::CommonName, subject.name);
    name
}

fn write(file: &Path, text: &str) -> Result<()> {
    let opened = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(file);
    opened
        .and_then(|mut opened| opened.write_all(text.as_bytes()))
        .with_context(|| format!("cannot write {}", file.display()))
}

/// What `--node-ip` says.
pub(super) fn node_ip(number: u8, families: Families) -> String {
    match families {
        Families::V4 => node_v4(number).to_string(),
        Families::Dual => {
            let all: Vec<String> = node_addresses(number, families).iter().map(IpAddr::to_string).collect();
            all.join(",")
        }
    }
}
