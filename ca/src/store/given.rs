//! A root or intermediate given by hand (or by cert-manager): `tls.crt`, `tls.key` and `ca.crt` in the store.

use super::{Secret, Store, StoreError, read};
use crate::root::{Authority, Certificate, Key, PemError};

const CHAIN: &str = "tls.crt";
const KEY: &str = "tls.key";
const ROOTS: &str = "ca.crt";

impl Store {
    /// What was given by hand; `None` if none of the three files is there. Not yet checked: see [`Authority::check`].
    pub fn given(&self) -> Result<Option<Authority>, StoreError> {
        let dir = self.dir();
        let chain = read(&dir.join(CHAIN), Secret::No)?;
        let key = read(&dir.join(KEY), Secret::Yes)?;
        let roots = read(&dir.join(ROOTS), Secret::No)?;
        let (chain, key, roots) = match (chain, key, roots) {
            (None, None, None) => return Ok(None),
            (Some(chain), Some(key), Some(roots)) => (chain, key, roots),
            (None, _, _) => return Err(self.given_in_part(CHAIN)),
            (_, None, _) => return Err(self.given_in_part(KEY)),
            (_, _, None) => return Err(self.given_in_part(ROOTS)),
        };
        let chain = Certificate::all_in(&chain).map_err(|source| self.wrong(CHAIN, source))?;
        let key = Key::from_pem(&key).map_err(|source| self.wrong(KEY, source))?;
        let roots = Certificate::all_in(&roots).map_err(|source| self.wrong(ROOTS, source))?;
        Ok(Some(Authority::given(chain, key, roots)))
    }

    fn given_in_part(&self, name: &str) -> StoreError {
        let path = self.dir().join(name);
        StoreError::GivenInPart { path }
    }

    fn wrong(&self, name: &str, source: PemError) -> StoreError {
        let path = self.dir().join(name);
        StoreError::Given { path, source }
    }
}
