// The viewer's key: it lives in this tab, and ends with it.

const NAME = "tandem.key";

export const session = {
  get key() {
    return sessionStorage.getItem(NAME);
  },
  remember(key) {
    sessionStorage.setItem(NAME, key);
  },
  forget() {
    sessionStorage.removeItem(NAME);
  },
};
