//! Places that whoever comes from an address takes for a while: so many in all, and so many of them for one address.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// How many are taken, by address.
#[derive(Debug)]
pub(crate) struct Places {
    most: usize,
    most_of_one: usize,
    taken: Mutex<HashMap<IpAddr, usize>>,
}

/// Why there is none.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Full {
    /// All are taken.
    All,
    /// All that one address may have are taken.
    OfOne,
}

/// One that is taken; given back when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    from: IpAddr,
}

impl Places {
    pub(crate) fn new(most: usize, most_of_one: usize) -> Arc<Self> {
        Arc::new(Self { most, most_of_one, taken: Mutex::default() })
    }

    pub(crate) fn take(self: &Arc<Self>, from: IpAddr) -> Result<Place, Full> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.values().sum::<usize>() >= self.most {
            return Err(Full::All);
        }
        let of_one = taken.entry(from).or_insert(0);
        if *of_one >= self.most_of_one {
            return Err(Full::OfOne);
        }
        *of_one += 1;
        Ok(Place { places: Arc::clone(self), from })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut of_one) = taken.entry(self.from) {
            *of_one.get_mut() -= 1;
            if *of_one.get() == 0 {
                of_one.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_by_address_and_in_all_and_come_back() {
        const MOST: usize = 12;
        const MOST_OF_ONE: usize = 3;
        let places = Places::new(MOST, MOST_OF_ONE);
        let from = |n: usize| IpAddr::from([10, 0, 0, u8::try_from(n).unwrap()]);
        let mut taken = Vec::new();
        for source in 0..MOST / MOST_OF_ONE {
            for _ in 0..MOST_OF_ONE {
                taken.push(places.take(from(source)).unwrap());
            }
            if taken.len() < MOST {
                assert_eq!(places.take(from(source)).unwrap_err(), Full::OfOne);
            }
        }
        assert_eq!(places.take(from(200)).unwrap_err(), Full::All);
        taken.pop();
        taken.push(places.take(from(200)).unwrap());
        drop(taken);
        assert!(places.taken.lock().unwrap().is_empty());
    }
}
