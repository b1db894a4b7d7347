//! TLS 1.3 records, sealed and opened in place (RFC 8446, section 5), and the change of their keys (4.6.3, 5.5).
//!
//! The handshake is rustls'; it hands over the secrets and keeps the key schedule ([`Session`]). Moves no bytes.

use std::cell::{Cell, RefCell};
use std::io;
use std::ops::Range;
use std::rc::Rc;

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use rustls::client::ClientConnectionData;
use rustls::kernel::KernelConnection;
use rustls::server::ServerConnectionData;
use rustls::{AlertDescription, ConnectionTrafficSecrets};

#[cfg(test)]
mod tests;

/// Type, version and length (RFC 8446, 5.2).
pub(super) const HEADER_LEN: usize = 5;
/// Content of one record (5.1).
pub(super) const CONTENT_LEN_MAX: usize = 1 << 14;
/// The tag of AES-GCM; before it stands the true type.
const TAG_LEN: usize = 16;
/// What a record has besides its content.
const OVERHEAD: usize = HEADER_LEN + 1 + TAG_LEN;
/// A full record as sealed here: without padding.
pub(super) const RECORD_LEN_MAX: usize = CONTENT_LEN_MAX + OVERHEAD;
/// What a peer's record may have after its header: it may be padded (5.2).
const CIPHERTEXT_LEN_MAX: usize = CONTENT_LEN_MAX + 256;
/// A whole KeyUpdate record: a handshake message with a body of one byte (4.6.3).
pub(super) const KEY_UPDATE_LEN: usize = 5 + OVERHEAD;
/// A whole alert: level and description (6).
pub(super) const ALERT_LEN: usize = 2 + OVERHEAD;
/// Handshake messages after the handshake: tickets are the largest, with some 1 KiB of a client's certificates.
const MESSAGE_LEN_MAX: usize = 16 * 1024;
/// The shortest body of a ticket (4.6.1): lifetime 4, age 4, nonce 1 + 0, ticket 2 + 1, extensions 2 + 0.
const TICKET_LEN_MIN: usize = 14;
/// Records without data, and messages in them, in a row: each record counts, and of its messages each but the first. A
/// KeyUpdate of 27 bytes costs a key; an honest peer sends one in 2^24 records, and some tickets at the start. Rustls takes
/// as many records.
const WITHOUT_DATA_MAX: u8 = 32;

const TYPE_DATA: u8 = 23;
const TYPE_HANDSHAKE: u8 = 22;
const TYPE_ALERT: u8 = 21;
const MESSAGE_NEW_SESSION_TICKET: u8 = 4;
const MESSAGE_KEY_UPDATE: u8 = 24;
const ALERT_WARNING: u8 = 1;
const ALERT_FATAL: u8 = 2;

/// Why what a peer sent is no record that this side can read.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum RecordError {
    /// Longer than any record may be.
    #[error("peer sent a TLS record of {0} bytes")]
    TooLong(usize),
    /// The tag is wrong, or not even there: it was changed on its way, or is not the peer's.
    #[error("peer sent a TLS record that cannot be decrypted")]
    Undecryptable,
    /// Not to come after the handshake.
    #[error("peer sent a TLS record of type {0} after the handshake")]
    UnexpectedRecord(u8),
    /// Not to come after the handshake.
    #[error("peer sent a TLS handshake message of type {0} after the handshake")]
    UnexpectedMessage(u8),
    /// More in a row than [`WITHOUT_DATA_MAX`].
    #[error("peer sent nothing but TLS records without data")]
    WithoutData,
    /// Not of the form that its type has.
    #[error("peer sent a malformed {0}")]
    Malformed(&'static str),
}

impl RecordError {
    /// What the peer is told (6.2).
    pub(super) fn alert(self) -> AlertDescription {
        match self {
            Self::TooLong(_) => AlertDescription::RecordOverflow,
            Self::Undecryptable => AlertDescription::BadRecordMac,
            Self::UnexpectedRecord(_) | Self::UnexpectedMessage(_) | Self::WithoutData => {
                AlertDescription::UnexpectedMessage
            }
            Self::Malformed(_) => AlertDescription::DecodeError,
        }
    }
}

impl From<RecordError> for io::Error {
    fn from(error: RecordError) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}

/// The key schedule of a finished handshake, as both directions share it.
pub(super) struct Session {
    keys: RefCell<Schedule>,
    /// The peer asked for an update of this side's key.
    update_owed: Cell<bool>,
}

/// Rustls' part of it.
pub(super) enum Schedule {
    /// This side opened the connection.
    Client(KernelConnection<ClientConnectionData>),
    /// The other side did.
    Server(KernelConnection<ServerConnectionData>),
}

impl Session {
    /// Takes it over from the handshake.
    pub(super) fn new(keys: Schedule) -> Rc<Self> {
        Rc::new(Self { keys: RefCell::new(keys), update_owed: Cell::new(false) })
    }

    /// Records that one key may seal (5.5): the suite's bound as rustls has it.
    fn records_max(&self) -> u64 {
        let suite = match &*self.keys.borrow() {
            Schedule::Client(keys) => keys.negotiated_cipher_suite(),
            Schedule::Server(keys) => keys.negotiated_cipher_suite(),
        };
        suite.tls13().map_or(0, |suite| suite.common.confidentiality_limit)
    }

    fn next_sealing(&self) -> Result<RecordKey, rustls::Error> {
        let secrets = match &mut *self.keys.borrow_mut() {
            Schedule::Client(keys) => keys.update_tx_secret(),
            Schedule::Server(keys) => keys.update_tx_secret(),
        }?;
        RecordKey::new(secrets)
    }

    fn next_opening(&self) -> Result<RecordKey, rustls::Error> {
        let secrets = match &mut *self.keys.borrow_mut() {
            Schedule::Client(keys) => keys.update_rx_secret(),
            Schedule::Server(keys) => keys.update_rx_secret(),
        }?;
        RecordKey::new(secrets)
    }

    /// Whether this side opened the connection.
    fn is_client(&self) -> bool {
        matches!(&*self.keys.borrow(), Schedule::Client(_))
    }

    /// Whether the next thing sealed is a KeyUpdate.
    pub(super) fn update_owed(&self) -> bool {
        self.update_owed.get()
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("update_owed", &self.update_owed).finish_non_exhaustive()
    }
}

/// One direction's key, its nonces, and how many of them are used.
struct RecordKey {
    key: LessSafeKey,
    iv: [u8; 12],
    sequence: u64,
}

impl RecordKey {
    fn new((sequence, secrets): (u64, ConnectionTrafficSecrets)) -> Result<Self, rustls::Error> {
        let (algorithm, key, iv) = match &secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { .. } | _ => {
                return Err(rustls::Error::General("the mesh speaks AES-GCM only".into()));
            }
        };
        let unusable = || rustls::Error::General("the handshake left an unusable key".into());
        let key = UnboundKey::new(algorithm, key.as_ref()).map_err(|_| unusable())?;
        let iv = iv.as_ref().try_into().map_err(|_| unusable())?;
        Ok(Self { key: LessSafeKey::new(key), iv, sequence })
    }

    /// The nonce of the next record (5.3); none is given twice, and none after the last.
    fn nonce(&mut self) -> Option<Nonce> {
        let mut nonce = self.iv;
        for (byte, sequence) in nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= sequence;
        }
        self.sequence = self.sequence.checked_add(1)?;
        Some(Nonce::assume_unique_for_key(nonce))
    }
}

/// Seals what this side sends.
pub(super) struct Sealer {
    key: RecordKey,
    session: Rc<Session>,
    /// Records that the key may still seal, its KeyUpdate not counted.
    left: u64,
    records_max: u64,
}

impl Sealer {
    /// Goes on where the handshake ended.
    pub(super) fn new(
        secrets: (u64, ConnectionTrafficSecrets),
        session: Rc<Session>,
    ) -> Result<Self, rustls::Error> {
        let (used, records_max) = (secrets.0, session.records_max());
        let left = records_max.saturating_sub(used + 1);
        Ok(Self { key: RecordKey::new(secrets)?, session, left, records_max })
    }

    /// For tests: a key's life is long.
    #[cfg(test)]
    pub(super) fn seal_at_most(&mut self, records_max: u64) {
        (self.records_max, self.left) = (records_max, records_max);
    }

    /// Whether the peer or the key's age asks for a KeyUpdate before the next record.
    pub(super) fn must_update(&self) -> bool {
        self.left == 0 || self.session.update_owed()
    }

    /// Seals the data that stands at `HEADER_LEN..HEADER_LEN + len` of `room`; returns the record's length.
    /// `room` has [`OVERHEAD`] bytes more than that.
    pub(super) fn seal_data(&mut self, room: &mut [u8], len: usize) -> io::Result<usize> {
        self.left = self.left.saturating_sub(1);
        self.seal(TYPE_DATA, room, len)
    }

    /// Makes the KeyUpdate at the start of `room`, and seals with the next key from here on; returns its length.
    /// Does not ask the peer to change its own.
    pub(super) fn seal_update(&mut self, room: &mut [u8]) -> io::Result<usize> {
        room[HEADER_LEN..HEADER_LEN + 5].copy_from_slice(&[MESSAGE_KEY_UPDATE, 0, 0, 1, 0]);
        let len = self.seal(TYPE_HANDSHAKE, room, 5)?;
        self.key = self.session.next_sealing().map_err(io::Error::other)?;
        self.left = self.records_max.saturating_sub(1);
        self.session.update_owed.set(false);
        Ok(len)
    }

    /// Makes an alert at the start of `room`; returns its length.
    pub(super) fn seal_alert(&mut self, room: &mut [u8], alert: AlertDescription) -> io::Result<usize> {
        let level = if alert == AlertDescription::CloseNotify { ALERT_WARNING } else { ALERT_FATAL };
        room[HEADER_LEN..HEADER_LEN + 2].copy_from_slice(&[level, alert.into()]);
        self.seal(TYPE_ALERT, room, 2)
    }

    fn seal(&mut self, kind: u8, room: &mut [u8], len: usize) -> io::Result<usize> {
        let whole = len + OVERHEAD;
        let header = header(whole - HEADER_LEN);
        let (record, tag) = room[..whole].split_at_mut(whole - TAG_LEN);
        record[..HEADER_LEN].copy_from_slice(&header);
        record[HEADER_LEN + len] = kind;
        let failed = || io::Error::other("a record cannot be sealed");
        let nonce = self.key.nonce().ok_or_else(failed)?;
        let sealed = self
            .key
            .key
            .seal_in_place_separate_tag(nonce, Aad::from(header), &mut record[HEADER_LEN..])
            .map_err(|_| failed())?;
        tag.copy_from_slice(sealed.as_ref());
        Ok(whole)
    }
}

/// The header of every record after the handshake: its type is always the same, its version means nothing.
fn header(ciphertext_len: usize) -> [u8; HEADER_LEN] {
    let [high, low] =
        u16::try_from(ciphertext_len).expect("a record has at most 2^14 + 256 bytes").to_be_bytes();
    [TYPE_DATA, 3, 3, high, low]
}

/// What one record held.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Opened {
    /// Data, at this place of the record.
    Data(Range<usize>),
    /// Something for TLS itself, which is done.
    Nothing,
    /// The peer sends no more.
    End,
}

/// Opens what the peer sends.
pub(super) struct Opener {
    key: RecordKey,
    session: Rc<Session>,
    /// A handshake message of which parts have come.
    message: Vec<u8>,
    /// Records since the last one with data, and their messages: see [`WITHOUT_DATA_MAX`].
    without_data: u8,
}

impl Opener {
    /// Goes on where the handshake ended.
    pub(super) fn new(
        secrets: (u64, ConnectionTrafficSecrets),
        session: Rc<Session>,
    ) -> Result<Self, rustls::Error> {
        Ok(Self { key: RecordKey::new(secrets)?, session, message: Vec::new(), without_data: 0 })
    }

    /// Opens one whole record in place ([`whole`] tells its length). What is not data is done at once.
    pub(super) fn open(&mut self, record: &mut [u8]) -> io::Result<Opened> {
        let (header, ciphertext) = record.split_at_mut(HEADER_LEN);
        let nonce = self.key.nonce().ok_or(RecordError::Undecryptable)?;
        let opened = self
            .key
            .key
            .open_in_place(nonce, Aad::from(&*header), ciphertext)
            .map_err(|_| RecordError::Undecryptable)?;
        // After the content its type, and zeros for padding.
        let len = opened.iter().rposition(|&byte| byte != 0).ok_or(RecordError::UnexpectedRecord(0))?;
        let kind = opened[len];
        if len > CONTENT_LEN_MAX {
            return Err(RecordError::TooLong(len).into());
        }
        // A handshake message in parts is not interrupted (5.1).
        if kind != TYPE_HANDSHAKE && !self.message.is_empty() {
            return Err(RecordError::UnexpectedRecord(kind).into());
        }
        if kind == TYPE_DATA && len > 0 {
            self.without_data = 0;
        } else {
            self.count_without_data()?;
        }
        match kind {
            TYPE_DATA => Ok(Opened::Data(HEADER_LEN..HEADER_LEN + len)),
            TYPE_HANDSHAKE => self.handshake(&record[HEADER_LEN..HEADER_LEN + len]),
            TYPE_ALERT => alert(&record[HEADER_LEN..HEADER_LEN + len]),
            other => Err(RecordError::UnexpectedRecord(other).into()),
        }
    }

    /// One more record, or message in it, that carries no data.
    fn count_without_data(&mut self) -> Result<(), RecordError> {
        if self.without_data >= WITHOUT_DATA_MAX {
            return Err(RecordError::WithoutData);
        }
        self.without_data += 1;
        Ok(())
    }

    fn handshake(&mut self, content: &[u8]) -> io::Result<Opened> {
        // Must have content (5.1).
        if content.is_empty() || self.message.len() + content.len() > MESSAGE_LEN_MAX {
            return Err(RecordError::Malformed("handshake record").into());
        }
        self.message.extend_from_slice(content);
        let mut done = 0;
        while let &[kind, high, middle, low, ref rest @ ..] = &self.message[done..] {
            let len = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
            let Some(body) = rest.get(..len) else { break };
            match kind {
                // Only a server sends them (4.6.1). Resumption is off: what a ticket is for is never asked.
                MESSAGE_NEW_SESSION_TICKET if self.session.is_client() => {
                    if len < TICKET_LEN_MIN {
                        return Err(RecordError::Malformed("NewSessionTicket").into());
                    }
                }
                // The new key begins with the next record, so nothing else follows in this one (5.1).
                MESSAGE_KEY_UPDATE if rest.len() == len => {
                    let &[asked @ (0 | 1)] = body else {
                        return Err(RecordError::Malformed("KeyUpdate").into());
                    };
                    self.key = self.session.next_opening().map_err(io::Error::other)?;
                    // However often it asks before this side sends, one update answers (4.6.3).
                    self.session.update_owed.set(self.session.update_owed() || asked == 1);
                }
                other => return Err(RecordError::UnexpectedMessage(other).into()),
            }
            if done > 0 {
                self.count_without_data()?;
            }
            done += 4 + len;
        }
        // Once for all of them: each time, what follows is moved.
        drop(self.message.drain(..done));
        if self.message.is_empty() {
            self.message = Vec::new();
        }
        Ok(Opened::Nothing)
    }
}

/// What a whole alert means (6): the end, in order or not, or nothing.
fn alert(content: &[u8]) -> io::Result<Opened> {
    let &[_, description] = content else { return Err(RecordError::Malformed("alert").into()) };
    // In TLS 1.3 the level says nothing: all but these two are fatal (6.2).
    let description = AlertDescription::from(description);
    if description == AlertDescription::CloseNotify {
        Ok(Opened::End)
    } else if description == AlertDescription::UserCanceled {
        Ok(Opened::Nothing)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidData, rustls::Error::AlertReceived(description)))
    }
}

/// The length of the record at the start of `bytes`, its header included; `None` while that is not known, or not all
/// of it is there.
pub(super) fn whole(bytes: &[u8]) -> Result<Option<usize>, RecordError> {
    let &[kind, _, _, high, low, ref rest @ ..] = bytes else { return Ok(None) };
    if kind != TYPE_DATA {
        return Err(RecordError::UnexpectedRecord(kind));
    }
    let len = usize::from(u16::from_be_bytes([high, low]));
    if len > CIPHERTEXT_LEN_MAX {
        return Err(RecordError::TooLong(len));
    }
    if len <= TAG_LEN {
        return Err(RecordError::Undecryptable);
    }
    Ok((rest.len() >= len).then_some(HEADER_LEN + len))
}
