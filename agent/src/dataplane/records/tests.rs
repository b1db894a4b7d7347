use proptest::prelude::*;
use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;
use rustls_pki_types::ServerName;

use super::super::handshake::{Side, Step, advance};
use super::super::testing::id;
use super::*;
use crate::identity::fixed;
use crate::identity::tls::reason_of;
use adit_proto::Reason;

/// One end of a finished handshake.
struct End {
    sealer: Sealer,
    opener: Opener,
    session: Rc<Session>,
}

impl End {
    fn of(side: impl Side) -> Self {
        let (secrets, schedule) = side.hand_over().unwrap();
        let session = Session::new(schedule);
        let sealer = Sealer::new(secrets.tx, Rc::clone(&session)).unwrap();
        let opener = Opener::new(secrets.rx, Rc::clone(&session)).unwrap();
        Self { sealer, opener, session }
    }

    /// A record of this kind and content.
    fn record(&mut self, kind: u8, content: &[u8]) -> Vec<u8> {
        let mut room = vec![0; content.len() + OVERHEAD];
        room[HEADER_LEN..HEADER_LEN + content.len()].copy_from_slice(content);
        let len = self.sealer.seal(kind, &mut room, content.len()).unwrap();
        assert_eq!((len, whole(&room)), (room.len(), Ok(Some(room.len()))));
        room
    }

    fn data(&mut self, content: &[u8]) -> Vec<u8> {
        self.record(TYPE_DATA, content)
    }

    fn update(&mut self) -> Vec<u8> {
        let mut room = vec![0; KEY_UPDATE_LEN];
        assert_eq!(self.sealer.seal_update(&mut room).unwrap(), KEY_UPDATE_LEN);
        room
    }

    /// The data of a record.
    fn open(&mut self, mut record: Vec<u8>) -> Vec<u8> {
        match self.opener.open(&mut record).unwrap() {
            Opened::Data(place) => record[place].to_vec(),
            other @ (Opened::Nothing | Opened::End) => panic!("{other:?} instead of data"),
        }
    }

    fn says_nothing(&mut self, mut record: Vec<u8>) {
        assert_eq!(self.opener.open(&mut record).unwrap(), Opened::Nothing);
    }

    fn error(&mut self, mut record: Vec<u8>) -> io::Error {
        self.opener.open(&mut record).unwrap_err()
    }

    fn refusal(&mut self, record: Vec<u8>) -> RecordError {
        *self.error(record).get_ref().unwrap().downcast_ref().unwrap()
    }
}

/// A client and a server after their handshake.
fn ends() -> (End, End) {
    let (authority, certs) = fixed::certs(fixed::clock());
    authority.issue(&id("web"));
    authority.issue(&id("api"));
    let config = certs.client(&id("web"), &id("api")).unwrap();
    let name = ServerName::IpAddress(std::net::Ipv4Addr::LOCALHOST.into());
    let mut client = UnbufferedClientConnection::new(config, name).unwrap();
    let mut server = UnbufferedServerConnection::new(certs.server(&id("api")).unwrap()).unwrap();
    let (mut to_client, mut to_server) = (Vec::new(), Vec::new());
    while client.facts().is_handshaking() || server.facts().is_handshaking() {
        flight(&mut client, &mut to_client, &mut to_server);
        flight(&mut server, &mut to_server, &mut to_client);
    }
    (End::of(client), End::of(server))
}

fn flight(side: &mut impl Side, from: &mut Vec<u8>, to: &mut Vec<u8>) {
    while let Step::Again | Step::Send = advance(side, from, to, &mut Vec::new()).unwrap() {}
}

#[test]
fn what_one_end_seals_the_other_opens_in_both_directions() {
    let (mut client, mut server) = ends();
    for len in [1, 2, 15, 16, 17, 1000, CONTENT_LEN_MAX - 1, CONTENT_LEN_MAX, 0, 7] {
        let content: Vec<u8> = (0..len).map(|at| u8::try_from(at % 251).unwrap()).collect();
        let record = client.data(&content);
        assert_eq!(record.len(), len + OVERHEAD);
        assert_eq!(server.open(record), content);
        let record = server.data(&content);
        assert_eq!(client.open(record), content);
    }
}

#[test]
fn a_record_that_was_changed_repeated_or_moved_is_not_opened() {
    for at in HEADER_LEN..HEADER_LEN + 12 {
        let (mut client, mut server) = ends();
        let mut record = client.data(b"abc");
        let at = at.min(record.len() - 1);
        record[at] ^= 1;
        assert_eq!(server.refusal(record), RecordError::Undecryptable, "byte {at}");
    }
    let (mut client, mut server) = ends();
    let first = client.data(b"first");
    assert_eq!(server.open(first.clone()), b"first");
    assert_eq!(server.refusal(first), RecordError::Undecryptable);
    let (mut client, mut server) = ends();
    let _first = client.data(b"first");
    let second = client.data(b"second");
    assert_eq!(server.refusal(second), RecordError::Undecryptable);
    let (mut client, _) = ends();
    let own = client.data(b"mine");
    assert_eq!(client.refusal(own), RecordError::Undecryptable, "a record of this side's own");
}

#[test]
fn padding_is_taken_off() {
    let (mut client, mut server) = ends();
    let mut content = b"padded\0".to_vec();
    content.push(TYPE_DATA);
    content.extend([0; 100]);
    let record = client.record(0, &content);
    assert_eq!(server.open(record), b"padded\0");
    let record = client.record(0, &[0; 100]);
    assert_eq!(server.refusal(record), RecordError::UnexpectedRecord(0));
}

#[test]
fn content_beyond_a_record_is_refused() {
    let (mut client, mut server) = ends();
    let record = client.data(&[7; CONTENT_LEN_MAX + 1]);
    assert_eq!(server.refusal(record), RecordError::TooLong(CONTENT_LEN_MAX + 1));
}

#[test]
fn a_new_key_is_followed_and_asking_for_one_is_answered_once() {
    let (mut client, mut server) = ends();
    let update = client.update();
    server.says_nothing(update);
    assert!(!server.sealer.must_update());
    let record = client.data(b"with the new key");
    assert_eq!(server.open(record), b"with the new key");
    for _ in 0..3 {
        let asks = server.record(TYPE_HANDSHAKE, &[MESSAGE_KEY_UPDATE, 0, 0, 1, 1]);
        server.sealer.key = server.session.next_sealing().unwrap();
        client.says_nothing(asks);
    }
    assert!(client.sealer.must_update());
    let update = client.update();
    assert!(!client.sealer.must_update());
    server.says_nothing(update);
    let record = client.data(b"one way");
    assert_eq!(server.open(record), b"one way");
    let record = server.data(b"and the other");
    assert_eq!(client.open(record), b"and the other");
}

#[test]
fn a_key_that_has_sealed_enough_is_changed() {
    let (mut client, mut server) = ends();
    assert_eq!(client.session.records_max(), 1 << 24);
    client.sealer.records_max = 3;
    client.sealer.left = 2;
    for _ in 0..3 {
        for _ in 0..2 {
            assert!(!client.sealer.must_update());
            let mut room = [0; 1 + OVERHEAD];
            let len = client.sealer.seal_data(&mut room, 1).unwrap();
            assert_eq!(server.open(room[..len].to_vec()).len(), 1);
        }
        assert!(client.sealer.must_update());
        let update = client.update();
        server.says_nothing(update);
    }
}

#[test]
fn no_nonce_is_given_twice() {
    let (mut client, _) = ends();
    client.sealer.key.sequence = u64::MAX;
    assert!(client.sealer.seal_alert(&mut [0; ALERT_LEN], AlertDescription::CloseNotify).is_err());
}

#[test]
fn a_bad_key_update_is_refused() {
    for (content, refusal) in [
        (&[MESSAGE_KEY_UPDATE, 0, 0, 1, 2][..], RecordError::Malformed("KeyUpdate")),
        (&[MESSAGE_KEY_UPDATE, 0, 0, 0], RecordError::Malformed("KeyUpdate")),
        (&[MESSAGE_KEY_UPDATE, 0, 0, 1, 0, 4], RecordError::UnexpectedMessage(MESSAGE_KEY_UPDATE)),
        (&[], RecordError::Malformed("handshake record")),
        (&[1, 0, 0, 0], RecordError::UnexpectedMessage(1)),
    ] {
        let (mut client, mut server) = ends();
        let record = client.record(TYPE_HANDSHAKE, content);
        assert_eq!(server.refusal(record), refusal, "{content:?}");
    }
}

#[test]
fn tickets_are_skipped_also_in_parts() {
    let (mut client, mut server) = ends();
    let mut tickets = vec![MESSAGE_NEW_SESSION_TICKET, 0, 0, 200];
    tickets.extend([9; 200]);
    tickets.extend_from_within(..);
    for part in tickets.chunks(77) {
        let record = server.record(TYPE_HANDSHAKE, part);
        client.says_nothing(record);
    }
    let record = server.data(b"after");
    assert_eq!(client.open(record), b"after");
    assert_eq!(client.opener.message.capacity(), 0, "nothing is kept");

    let record = server.record(TYPE_HANDSHAKE, &[MESSAGE_NEW_SESSION_TICKET, 0, 0]);
    client.says_nothing(record);
    let record = server.data(b"between");
    assert_eq!(client.refusal(record), RecordError::UnexpectedRecord(TYPE_DATA));
}

#[test]
fn a_client_sends_no_tickets() {
    let (mut client, mut server) = ends();
    let record = client.record(TYPE_HANDSHAKE, &[MESSAGE_NEW_SESSION_TICKET, 0, 0, 1, 9]);
    let refusal = server.refusal(record);
    assert_eq!(refusal, RecordError::UnexpectedMessage(MESSAGE_NEW_SESSION_TICKET));
    assert_eq!(refusal.alert(), AlertDescription::UnexpectedMessage);
}

#[test]
fn a_peer_that_sends_no_data_is_refused_in_the_end() {
    for nothing in [End::update, |end: &mut End| end.data(b"")] {
        let (mut client, mut server) = ends();
        for _ in 0..3 {
            for _ in 0..WITHOUT_DATA_MAX {
                let mut record = nothing(&mut client);
                server.opener.open(&mut record).unwrap();
            }
            let record = client.data(b"x");
            assert_eq!(server.open(record), b"x");
        }
        for _ in 0..WITHOUT_DATA_MAX {
            let mut record = nothing(&mut client);
            server.opener.open(&mut record).unwrap();
        }
        let record = nothing(&mut client);
        let refusal = server.refusal(record);
        assert_eq!(
            (refusal, refusal.alert()),
            (RecordError::WithoutData, AlertDescription::UnexpectedMessage)
        );
    }
}

/// A ticket whose body has this length.
fn ticket(len: u8) -> Vec<u8> {
    let mut ticket = vec![MESSAGE_NEW_SESSION_TICKET, 0, 0, len];
    ticket.resize(4 + usize::from(len), 9);
    ticket
}

#[test]
fn a_record_full_of_tickets_counts_as_many_records_without_data() {
    let (mut client, mut server) = ends();
    let shortest = ticket(14);
    for _ in 0..3 {
        let record = server.record(TYPE_HANDSHAKE, &shortest.repeat(usize::from(WITHOUT_DATA_MAX)));
        client.says_nothing(record);
        let record = server.data(b"x");
        assert_eq!(client.open(record), b"x");
    }
    let record = server.record(TYPE_HANDSHAKE, &shortest.repeat(CONTENT_LEN_MAX / shortest.len()));
    assert_eq!(client.refusal(record), RecordError::WithoutData);
}

#[test]
fn a_ticket_that_is_shorter_than_any_is_refused() {
    for len in [0, 13] {
        let (mut client, mut server) = ends();
        let record = server.record(TYPE_HANDSHAKE, &ticket(len));
        assert_eq!(client.refusal(record), RecordError::Malformed("NewSessionTicket"), "{len}");
    }
}

#[test]
fn a_message_that_never_ends_is_refused() {
    let (mut client, mut server) = ends();
    let mut start = vec![MESSAGE_NEW_SESSION_TICKET, 0xff, 0xff, 0xff];
    start.resize(CONTENT_LEN_MAX, 1);
    let record = server.record(TYPE_HANDSHAKE, &start);
    client.says_nothing(record);
    let record = server.record(TYPE_HANDSHAKE, &[1]);
    assert_eq!(client.refusal(record), RecordError::Malformed("handshake record"));
}

#[test]
fn an_alert_ends_in_order_or_with_its_reason() {
    let (mut client, mut server) = ends();
    let mut room = [0; ALERT_LEN];
    let canceled = server.record(TYPE_ALERT, &[1, AlertDescription::UserCanceled.into()]);
    client.says_nothing(canceled);
    assert_eq!(server.sealer.seal_alert(&mut room, AlertDescription::CloseNotify).unwrap(), ALERT_LEN);
    assert_eq!(client.opener.open(&mut room).unwrap(), Opened::End);
    let expired = server.record(TYPE_ALERT, &[2, AlertDescription::CertificateExpired.into()]);
    assert_eq!(reason_of(&client.error(expired)), Reason::OwnCertificateMissing);
    let half = server.record(TYPE_ALERT, &[2]);
    assert_eq!(client.refusal(half), RecordError::Malformed("alert"));
    let unknown = server.record(99, b"?");
    assert_eq!(client.refusal(unknown), RecordError::UnexpectedRecord(99));
}

#[test]
fn a_record_is_whole_when_all_of_it_is_there() {
    assert_eq!(whole(&[]), Ok(None));
    assert_eq!(whole(&[TYPE_DATA, 3, 3, 0]), Ok(None));
    assert_eq!(whole(&[TYPE_DATA, 3, 3, 0, 17]), Ok(None));
    assert_eq!(whole(&[TYPE_DATA, 3, 3, 0, 16]), Err(RecordError::Undecryptable));
    assert_eq!(whole(&[TYPE_DATA, 3, 3, 0x41, 0]), Ok(None));
    assert_eq!(whole(&[TYPE_DATA, 3, 3, 0x41, 1]), Err(RecordError::TooLong(CIPHERTEXT_LEN_MAX + 1)));
    assert_eq!(whole(&[20, 3, 3, 0, 1]), Err(RecordError::UnexpectedRecord(20)));
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..600), record in any::<bool>()) {
        if record && bytes.len() >= HEADER_LEN {
            let header = header(bytes.len() - HEADER_LEN);
            bytes[..HEADER_LEN].copy_from_slice(&header);
        }
        if let Ok(Some(len)) = whole(&bytes) {
            prop_assert!(len <= bytes.len());
            ENDS.with(|ends| {
                prop_assert!(ends.borrow_mut().1.opener.open(&mut bytes[..len]).is_err());
                Ok(())
            })?;
        }
    }

    #[test]
    fn no_content_of_a_record_makes_it_panic(kind in 20_u8..26, content in proptest::collection::vec(any::<u8>(), 0..40)) {
        let (mut client, mut server) = ends();
        let mut record = client.record(kind, &content);
        let _ = server.opener.open(&mut record);
        prop_assert!(server.opener.message.len() <= MESSAGE_LEN_MAX);
    }
}

thread_local! {
    static ENDS: RefCell<(End, End)> = RefCell::new(ends());
}
