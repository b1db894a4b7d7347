//! Reads what the API server answers, piece by piece, with a bound on bytes: a list is as long as what anybody in the
//! cluster has put into its objects.

use std::time::Duration;

use adit_objects::watch::{self, LINE_LEN_MAX};
use bytes::{Bytes, BytesMut};
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt as _};

/// The longest answer, in bytes: any one object is read, as from a watch. A page of 500 pods has 5 MiB; a longer one is
/// asked for in parts. While it is gathered, up to half as much again is held: see [`LISTS_AT_ONCE_MAX`].
///
/// [`LISTS_AT_ONCE_MAX`]: super::client::LISTS_AT_ONCE_MAX
pub(crate) const ANSWER_LEN_MAX: usize = LINE_LEN_MAX;

/// Why an answer could not be read.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Unread<E> {
    /// It, or a line of a watch, is longer than is read.
    TooLong,
    /// No further piece came in time.
    Silent,
    /// The connection ended.
    Broken(E),
}

/// The pieces of an answer in one. Each may take as long as `within`, however many there are.
pub(super) async fn collect<E>(
    pieces: impl Stream<Item = Result<Bytes, E>>,
    within: Duration,
) -> Result<BytesMut, Unread<E>> {
    let mut pieces = std::pin::pin!(pieces);
    let mut whole = BytesMut::new();
    loop {
        match tokio::time::timeout(within, pieces.next()).await {
            Err(_) => return Err(Unread::Silent),
            Ok(None) => return Ok(whole),
            Ok(Some(Err(error))) => return Err(Unread::Broken(error)),
            Ok(Some(Ok(piece))) if whole.len() + piece.len() > ANSWER_LEN_MAX => return Err(Unread::TooLong),
            Ok(Some(Ok(piece))) => whole.extend_from_slice(&piece),
        }
    }
}

/// The lines of a watch.
pub(crate) struct Lines<E> {
    pieces: BoxStream<'static, Result<Bytes, E>>,
    read: watch::Lines,
}

impl<E> Lines<E> {
    pub(super) fn of(pieces: impl Stream<Item = Result<Bytes, E>> + Send + 'static) -> Self {
        Self { pieces: pieces.boxed(), read: watch::Lines::default() }
    }

    /// The next line; none when the API server has ended the watch, also in the midst of a line. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<Result<Bytes, Unread<E>>> {
        loop {
            if let Some(line) = self.read.take() {
                return Some(Ok(line));
            }
            let added = match self.pieces.next().await? {
                Ok(piece) => self.read.add(&piece),
                Err(error) => return Some(Err(Unread::Broken(error))),
            };
            if added.is_err() {
                return Some(Err(Unread::TooLong));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::stream;

    use super::*;

    const WITHIN: Duration = Duration::from_secs(4);

    fn piece(len: usize) -> Result<Bytes, Infallible> {
        Ok(Bytes::from(vec![b'x'; len]))
    }

    /// A piece every `period`.
    fn slow(period: Duration, pieces: usize) -> impl Stream<Item = Result<Bytes, Infallible>> {
        let ticks = tokio::time::interval_at(tokio::time::Instant::now() + period, period);
        let next = |mut ticks: tokio::time::Interval| async {
            ticks.tick().await;
            Some((piece(1), ticks))
        };
        stream::unfold(ticks, next).take(pieces)
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_may_take_long_as_long_as_more_of_it_comes() {
        let whole = collect(slow(WITHIN - Duration::from_secs(1), 10), WITHIN).await.unwrap();
        assert_eq!(whole.len(), 10);
        let silent = collect(slow(WITHIN + Duration::from_secs(1), 10), WITHIN).await;
        assert_eq!(silent, Err(Unread::Silent));
    }

    #[tokio::test]
    async fn no_more_is_held_of_an_answer_or_a_line_than_its_bound() {
        let half = ANSWER_LEN_MAX / 2;
        let just = collect(stream::iter([piece(half), piece(half)]), WITHIN).await.unwrap();
        assert_eq!(just.len(), ANSWER_LEN_MAX);
        assert!(just.capacity() <= ANSWER_LEN_MAX, "{}", just.capacity());
        let longer = collect(stream::iter([piece(half), piece(half), piece(1)]), WITHIN).await;
        assert_eq!(longer, Err(Unread::TooLong));
        let mut lines = Lines::of(stream::iter([Ok("a\nb".into()), Ok("\n".into()), piece(half)]));
        for line in ["a", "b"] {
            assert_eq!(lines.next().await, Some(Ok(line.into())));
        }
        assert_eq!(lines.next().await, None, "cut off in a line");
        let mut lines = Lines::of(stream::iter([piece(half), piece(half), piece(1)]));
        assert_eq!(lines.next().await, Some(Err(Unread::TooLong)));
    }
}
