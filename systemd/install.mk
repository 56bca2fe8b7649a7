# Installing the service; included by the Makefile, and usable alone: make -f systemd/install.mk install
# systemd/README.md says each step in words. Everything goes below DESTDIR, which packagers and tests
# set to a folder of their own: then no root is needed and nothing of this machine is changed.

PYTHON ?= python3
PREFIX ?= /opt/edged
UNITDIR ?= /etc/systemd/system
SYSUSERSDIR ?= /etc/sysusers.d
TMPFILESDIR ?= /etc/tmpfiles.d
BINDIR ?= /usr/local/bin
# What to install: this checkout, or a wheel that was built before.
WHEEL ?= .
# Optional parts of edged; on a device that runs GPU engines add cuda.
EXTRAS ?= build,images,uplink
# For example: --no-index --find-links=wheels, on a device without a network.
PIP_ARGS ?=

# Fixed, since the units name them through StateDirectory= and its kin.
CONFDIR := $(DESTDIR)/etc/edged
STATEDIR := $(DESTDIR)/var/lib/edged
CACHEDIR := $(DESTDIR)/var/cache/edged
VENVDIR := $(DESTDIR)$(PREFIX)
UNITS := edged.service edged-build@.service

.NOTPARALLEL:
.PHONY: install uninstall install-check install-venv install-files install-users install-models

install: install-check install-venv install-files install-users install-models ## install the service (root): venv, units, user, example settings
ifeq ($(DESTDIR),)
	systemctl daemon-reload
	systemctl try-restart edged.service
	@echo "edged is installed. Next:"
	@echo "  sudo -u edged edged build digits      build an engine (any model in /var/lib/edged/engines)"
	@echo "  sudo -u edged edged doctor            see what is missing"
	@echo "  sudo systemctl enable --now edged     start it, now and at each boot"
endif

install-check:
	@case "$(PREFIX)" in /*/*) ;; *) \
	  echo "edged: PREFIX '$(PREFIX)' must be an absolute folder below another one, such as /opt/edged" >&2; exit 1;; esac
ifeq ($(DESTDIR),)
	@test "$$(id -u)" = 0 || { echo "edged: installing needs root: sudo make install" >&2; exit 1; }
	@command -v systemctl >/dev/null || { echo "edged: there is no systemd here; run 'edged serve' under your own supervisor" >&2; exit 1; }
endif
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "edged: $(PYTHON) is older than 3.10; say which to use: make install PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { \
	  echo "edged: $(PYTHON) cannot make virtual environments: sudo apt-get install python3-venv" >&2; exit 1; }

# JetPack's TensorRT lives in the system's packages, therefore --system-site-packages. The second pip
# call replaces edged itself also where the version is the same; the first one alone would not.
install-venv:
	$(PYTHON) -m venv --system-site-packages "$(VENVDIR)"
	"$(VENVDIR)/bin/python" -m pip install --disable-pip-version-check --no-input $(PIP_ARGS) "$(WHEEL)[$(EXTRAS)]"
	"$(VENVDIR)/bin/python" -m pip install --disable-pip-version-check --no-input --quiet $(PIP_ARGS) \
	  --force-reinstall --no-deps "$(WHEEL)"
ifneq ($(DESTDIR),)
	grep -rlIF --exclude-dir=site-packages "$(DESTDIR)" "$(VENVDIR)/bin" "$(VENVDIR)/pyvenv.cfg" \
	  | xargs -r sed -i "s|$(DESTDIR)||g"
endif

install-files:
	for unit in $(UNITS); do \
	  install -D -m 644 "systemd/$$unit" "$(DESTDIR)$(UNITDIR)/$$unit" && \
	  sed -i "s|/opt/edged|$(PREFIX)|g" "$(DESTDIR)$(UNITDIR)/$$unit" || exit 1; done
	install -D -m 644 systemd/edged.sysusers "$(DESTDIR)$(SYSUSERSDIR)/edged.conf"
	install -D -m 644 systemd/edged.tmpfiles "$(DESTDIR)$(TMPFILESDIR)/edged.conf"
	install -d "$(VENVDIR)/share/doc/edged" "$(DESTDIR)$(BINDIR)"
	install -m 644 docs/*.md systemd/mosquitto-edged.conf systemd/mosquitto-control.acl "$(VENVDIR)/share/doc/edged/"
	ln -sfn "$(PREFIX)/bin/edged" "$(DESTDIR)$(BINDIR)/edged"

install-users:
ifeq ($(DESTDIR),)
	systemd-sysusers "$(SYSUSERSDIR)/edged.conf"
	systemd-tmpfiles --create "$(TMPFILESDIR)/edged.conf"
else
	install -d "$(STATEDIR)/engines" "$(STATEDIR)/calib"
endif
	install -d "$(CONFDIR)"
	test -e "$(CONFDIR)/edged.toml" || install -m 640 $(if $(DESTDIR),,-g edged) systemd/edged.toml "$(CONFDIR)/edged.toml"

# Sources only: engines are built on the device. A model folder that is there already is left alone,
# for it may hold the operator's own recipe.
install-models:
	set -e; for recipe in engines/*/recipe.toml; do \
	  test -e "$$recipe" || continue; \
	  model=$$(basename "$$(dirname "$$recipe")"); \
	  for kind in engines calib; do \
	    if test -d "$$kind/$$model" && ! test -e "$(STATEDIR)/$$kind/$$model"; then \
	      cp -R "$$kind/$$model" "$(STATEDIR)/$$kind/$$model"; \
	      rm -rf "$(STATEDIR)/$$kind/$$model/built"; \
	      $(if $(DESTDIR),:,chown -R edged:edged "$(STATEDIR)/$$kind/$$model"); \
	    fi; \
	  done; \
	done

uninstall: ## remove the service; settings and engines stay unless PURGE=1
ifeq ($(DESTDIR),)
	@test "$$(id -u)" = 0 || { echo "edged: uninstalling needs root: sudo make uninstall" >&2; exit 1; }
	-systemctl disable --now edged.service
	-systemctl stop 'edged-build@*.service'
endif
	rm -f $(foreach unit,$(UNITS),"$(DESTDIR)$(UNITDIR)/$(unit)")
	rm -f "$(DESTDIR)$(SYSUSERSDIR)/edged.conf" "$(DESTDIR)$(TMPFILESDIR)/edged.conf"
	@if test "$$(readlink "$(DESTDIR)$(BINDIR)/edged")" = "$(PREFIX)/bin/edged"; then rm -v "$(DESTDIR)$(BINDIR)/edged"; fi
	@if test -f "$(VENVDIR)/pyvenv.cfg"; then echo "removing $(VENVDIR)"; rm -rf "$(VENVDIR)"; fi
	rm -rf "$(CACHEDIR)"
ifeq ($(PURGE),1)
	rm -rf "$(CONFDIR)" "$(STATEDIR)"
else
	@echo "kept: $(CONFDIR) and $(STATEDIR); PURGE=1 removes them too, and the user edged"
endif
ifeq ($(DESTDIR),)
	systemctl daemon-reload
ifeq ($(PURGE),1)
	-userdel edged
endif
endif
