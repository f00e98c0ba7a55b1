//! Who may speak with this node: whoever has the cluster's secret, or a certificate of the operators' own authority.
//!
//! From the secret come a key for gossip and a certificate authority that every node can compute for itself; each issues
//! itself a certificate that carries its own node key. Two secrets may be listed while one replaces the other: the first
//! signs, both are accepted.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyUsagePurpose, PublicKeyData, SignatureAlgorithm, SigningKey, date_time_ymd,
};
use ring::hkdf;
use ring::signature::{Ed25519KeyPair, KeyPair};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName as SubjectName, RootCertStore, ServerConfig, SignatureScheme,
};

use crate::id::{IdError, NodeKey};

/// How many secrets may be accepted at once: the old one and the new one.
pub const SECRETS_MAX: usize = 2;

const PREFIX: &str = "lea-cluster-";
const SECRET_LEN: usize = 32;
const CHECK_LEN: usize = 4;

/// Tells peers apart from whatever else may speak TLS on the port; a new protocol takes a new number.
const ALPN: &[u8] = b"lea-peer/1";

/// Within the life of every certificate made from a secret. They are valid from 1970 to 4096, so that a wrong clock
/// cannot part a node from its cluster; nobody looks at the real time.
const ALWAYS: Duration = Duration::from_secs(1 << 30);

/// What makes a node a member: 32 random bytes. Never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct ClusterSecret([u8; SECRET_LEN]);

impl ClusterSecret {
    /// A new secret as people hand it on.
    pub fn new_text() -> Result<String, IdError> {
        let mut bytes = [0; SECRET_LEN];
        getrandom::fill(&mut bytes).map_err(|_| IdError::NoRandomness)?;
        Ok(Self(bytes).text())
    }

    /// Nothing but what [`new_text`](Self::new_text) made is accepted: whoever can reach the port could guess a phrase
    /// that people thought of. White space around it is ignored, for files end with a line break.
    pub fn parse(text: &str) -> Result<Self, SecretError> {
        let text = text.trim();
        let digits = text.strip_prefix(PREFIX).ok_or(SecretError::Prefix)?;
        let wanted = 2 * (SECRET_LEN + CHECK_LEN);
        if digits.len() != wanted || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(SecretError::Digits { wanted, found: digits.chars().count() });
        }
        let mut bytes = [0; SECRET_LEN + CHECK_LEN];
        for (place, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&digits[2 * place..2 * place + 2], 16).map_err(|_| SecretError::Check)?;
        }
        let mut secret = [0; SECRET_LEN];
        secret.copy_from_slice(&bytes[..SECRET_LEN]);
        let secret = Self(secret);
        if secret.check() == bytes[SECRET_LEN..] { Ok(secret) } else { Err(SecretError::Check) }
    }

    fn text(&self) -> String {
        use fmt::Write;
        let mut text = String::from(PREFIX);
        for byte in self.0.iter().chain(&self.check()) {
            // Writing to a string cannot fail.
            let _ = write!(text, "{byte:02x}");
        }
        text
    }

    fn check(&self) -> [u8; CHECK_LEN] {
        let mut hasher = blake3::Hasher::new_derive_key("llm-edge-agent 2026 checksum of a cluster secret");
        hasher.update(&self.0);
        let mut check = [0; CHECK_LEN];
        check.copy_from_slice(&hasher.finalize().as_bytes()[..CHECK_LEN]);
        check
    }

    /// 32 bytes that nobody learns who does not have the secret.
    fn derive(&self, purpose: &'static str) -> Result<[u8; 32], TrustError> {
        let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, b"llm-edge-agent cluster secret");
        let mut key = [0; 32];
        let purpose = [purpose.as_bytes()];
        let derived = salt.extract(&self.0).expand(&purpose, hkdf::HKDF_SHA256).and_then(|okm| okm.fill(&mut key));
        derived.map_err(|_| TrustError::Derivation)?;
        Ok(key)
    }
}

impl fmt::Debug for ClusterSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Why a text is not a secret. Says nothing of the text itself.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SecretError {
    #[error(
        "a cluster secret begins with `{PREFIX}`; make one with `llm-edge-agent cluster new-secret` (pass phrases are not accepted)"
    )]
    Prefix,

    #[error("a cluster secret has {wanted} hex digits after `{PREFIX}`; this has {found} characters or other ones")]
    Digits { wanted: usize, found: usize },

    #[error("the cluster secret's checksum does not match: a character is wrong or missing")]
    Check,
}

/// The key of gossip datagrams. Never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct GossipKey(pub(crate) [u8; 32]);

impl fmt::Debug for GossipKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// The operators' own certificates, in PEM, instead of those made from the secret.
#[derive(Clone)]
pub struct OwnPki {
    /// Authorities whose certificates are accepted.
    pub ca: Vec<u8>,
    /// This node's certificate and what leads to the authority. Good for servers and clients.
    pub cert: Vec<u8>,
    pub key: Vec<u8>,
}

impl fmt::Debug for OwnPki {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OwnPki(***)")
    }
}

/// All that is needed to prove oneself and to believe others.
pub struct Trust {
    key: NodeKey,
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    gossip: Vec<GossipKey>,
    /// Certificates made from a secret carry the node's key; operators' certificates carry any.
    leaf_is_node: bool,
}

/// Swapped while the node runs: new connections use the new trust, old ones stay until they close.
pub type LiveTrust = Arc<ArcSwap<Trust>>;

impl Trust {
    /// The first secret signs, each is accepted.
    pub fn new(secrets: &[ClusterSecret], key: &NodeKey) -> Result<Self, TrustError> {
        let signing = first(secrets)?;
        let mut roots = RootCertStore::empty();
        for secret in secrets {
            let root = Authority::of(secret)?.certificate()?;
            roots.add(root).map_err(|cause| TrustError::Certificate { why: cause.to_string() })?;
        }
        let chain = vec![Authority::of(signing)?.issue(key)?];
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.pkcs8().to_vec()));
        Self::build(secrets, key, Verifier::new(roots, Time::Ignored)?, (chain, private))
    }

    /// Connections are trusted by the operators' authority; gossip still needs a secret, for a certificate cannot seal
    /// datagrams.
    pub fn with_own_pki(pki: &OwnPki, secrets: &[ClusterSecret], key: &NodeKey) -> Result<Self, TrustError> {
        first(secrets)?;
        let mut roots = RootCertStore::empty();
        for root in certificates("ca", &pki.ca)? {
            roots.add(root).map_err(|cause| TrustError::File { file: "ca", why: cause.to_string() })?;
        }
        let chain = certificates("cert", &pki.cert)?;
        let private = PrivateKeyDer::from_pem_slice(&pki.key)
            .map_err(|cause| TrustError::File { file: "key", why: cause.to_string() })?;
        Self::build(secrets, key, Verifier::new(roots, Time::Kept)?, (chain, private))
    }

    /// What a thief would make: the certificate of one node and the key of another.
    #[cfg(test)]
    pub(super) fn posing(mut self, key: &NodeKey) -> Self {
        self.key = key.clone();
        self
    }

    pub fn live(self) -> LiveTrust {
        Arc::new(ArcSwap::from_pointee(self))
    }

    /// The first seals, each opens.
    pub fn gossip_keys(&self) -> &[GossipKey] {
        &self.gossip
    }

    pub fn node_key(&self) -> &NodeKey {
        &self.key
    }

    pub(super) fn client(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.client)
    }

    pub(super) fn server(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server)
    }

    pub(super) fn leaf_is_node(&self) -> bool {
        self.leaf_is_node
    }

    fn build(
        secrets: &[ClusterSecret],
        key: &NodeKey,
        verifier: Verifier,
        (chain, private): (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>),
    ) -> Result<Self, TrustError> {
        let leaf_is_node = verifier.time == Time::Ignored;
        let verifier = Arc::new(verifier);
        let wrong = |cause: rustls::Error| TrustError::Certificate { why: cause.to_string() };
        let mut client = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(wrong)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(&verifier) as Arc<dyn ServerCertVerifier>)
            .with_client_auth_cert(chain.clone(), private.clone_key())
            .map_err(wrong)?;
        client.alpn_protocols = vec![ALPN.to_vec()];
        client.enable_sni = false;
        // A resumed session would outlive the secret it was opened with.
        client.resumption = Resumption::disabled();
        let mut server = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(wrong)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, private)
            .map_err(wrong)?;
        server.alpn_protocols = vec![ALPN.to_vec()];
        server.send_tls13_tickets = 0;
        server.session_storage = Arc::new(NoServerSessionStorage {});
        let gossip = secrets.iter().map(|secret| secret.derive("gossip key").map(GossipKey));
        Ok(Self {
            key: key.clone(),
            client: Arc::new(client),
            server: Arc::new(server),
            gossip: gossip.collect::<Result<_, _>>()?,
            leaf_is_node,
        })
    }
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Trust({}, ***)", self.key.node_id())
    }
}

/// Why there is no trust.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TrustError {
    #[error("1 to {SECRETS_MAX} cluster secrets are needed; there are {found}")]
    Count { found: usize },

    #[error("no keys can be derived from the secret")]
    Derivation,

    #[error("the node's certificate cannot be used: {why}")]
    Certificate { why: String },

    #[error("the file `{file}` of the cluster's TLS cannot be used: {why}")]
    File { file: &'static str, why: String },
}

fn first(secrets: &[ClusterSecret]) -> Result<&ClusterSecret, TrustError> {
    let count = TrustError::Count { found: secrets.len() };
    secrets.first().filter(|_| secrets.len() <= SECRETS_MAX).ok_or(count)
}

fn certificates(file: &'static str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TrustError> {
    let found = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    let found = found.map_err(|cause| TrustError::File { file, why: cause.to_string() })?;
    if found.is_empty() {
        return Err(TrustError::File { file, why: "it has no certificate".to_owned() });
    }
    Ok(found)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// A certificate authority computed from a secret: the same on every node.
struct Authority {
    pair: Ed25519KeyPair,
}

impl Authority {
    fn of(secret: &ClusterSecret) -> Result<Self, TrustError> {
        let seed = secret.derive("certificate authority")?;
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).map_err(|_| TrustError::Derivation)?;
        Ok(Self { pair })
    }

    fn certificate(&self) -> Result<CertificateDer<'static>, TrustError> {
        let certificate = self.params().self_signed(self).map_err(|cause| unissued(&cause))?;
        Ok(certificate.der().clone())
    }

    fn issue(&self, key: &NodeKey) -> Result<CertificateDer<'static>, TrustError> {
        let mut params = between(1970, 4096);
        params.distinguished_name = named(&key.node_id().to_string());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let issuer = Issuer::new(self.params(), self);
        let leaf = params.signed_by(&LeafKey(key), &issuer).map_err(|cause| unissued(&cause))?;
        Ok(leaf.der().clone())
    }

    /// The name tells authorities of two secrets apart, so that a chain is looked for under the right one.
    fn params(&self) -> CertificateParams {
        let mut params = between(1970, 4096);
        let hash = blake3::hash(self.pair.public_key().as_ref()).to_hex();
        params.distinguished_name = named(&format!("cluster {}", &hash[..16]));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params
    }
}

impl PublicKeyData for Authority {
    fn der_bytes(&self) -> &[u8] {
        self.pair.public_key().as_ref()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_ED25519
    }
}

impl SigningKey for Authority {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        Ok(self.pair.sign(message).as_ref().to_vec())
    }
}

struct LeafKey<'a>(&'a NodeKey);

impl PublicKeyData for LeafKey<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.0.public_key()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_ED25519
    }
}

fn between(first: i32, last: i32) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = date_time_ymd(first, 1, 1);
    params.not_after = date_time_ymd(last, 1, 1);
    params
}

fn named(name: &str) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    names.push(DnType::CommonName, name);
    names
}

fn unissued(cause: &rcgen::Error) -> TrustError {
    TrustError::Certificate { why: cause.to_string() }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Time {
    Ignored,
    Kept,
}

/// Believes every certificate under the accepted authorities, whatever host it was made for: who somebody is, is proved
/// by the node's key afterwards.
#[derive(Debug)]
struct Verifier {
    roots: RootCertStore,
    clients: Arc<dyn ClientCertVerifier>,
    provider: Arc<CryptoProvider>,
    time: Time,
}

impl Verifier {
    fn new(roots: RootCertStore, time: Time) -> Result<Self, TrustError> {
        let provider = provider();
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots.clone()), Arc::clone(&provider))
            .build()
            .map_err(|cause| TrustError::Certificate { why: cause.to_string() })?;
        Ok(Self { roots, clients, provider, time })
    }

    fn time(&self, now: UnixTime) -> UnixTime {
        match self.time {
            Time::Ignored => UnixTime::since_unix_epoch(ALWAYS),
            Time::Kept => now,
        }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let leaf = ParsedCertificate::try_from(leaf)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&leaf, &self.roots, between, self.time(now), algorithms)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.clients.verify_tls12_signature(message, cert, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.clients.verify_tls13_signature(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.clients.supported_verify_schemes()
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[SubjectName] {
        // Whoever probes the port need not learn the authorities' names.
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.clients.verify_client_cert(leaf, between, self.time(now))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.clients.verify_tls12_signature(message, cert, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.clients.verify_tls13_signature(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.clients.supported_verify_schemes()
    }
}

#[cfg(test)]
#[path = "trust/tests.rs"]
mod tests;
