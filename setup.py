"Packaging: everything is read from settings.ini, which nbdev reads too."
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

cfg = ConfigParser(delimiters=["="])
cfg.read("settings.ini", encoding="utf-8")
cfg = cfg["DEFAULT"]

setup(
    name=cfg["lib_name"], version=cfg["version"], description=cfg["description"], keywords=cfg["keywords"],
    author=cfg["author"], author_email=cfg["author_email"], license="Apache-2.0", url=cfg["git_url"],
    long_description=Path("README.md").read_text(encoding="utf-8") if Path("README.md").exists() else "",
    long_description_content_type="text/markdown",
    classifiers=["Development Status :: 3 - Alpha", "Intended Audience :: Science/Research", "Programming Language :: Python :: 3.11", "Programming Language :: Python :: 3.12", "Programming Language :: Python :: 3.13", "Operating System :: POSIX :: Linux",
                 "Framework :: Jupyter", "Topic :: Scientific/Engineering :: Artificial Intelligence"],
    project_urls={"Source": cfg["git_url"], "Documentation": cfg["doc_host"]+cfg["doc_baseurl"], "The paper": "https://arxiv.org/abs/2407.09121"},
    packages=["derta_kit"], include_package_data=False,
    package_dir={"": "."},      # said, so that `pip install -e` puts a path down and no finder: beside a clone, which has the package's name, a finder comes too late
    package_data={"derta_kit": ["demo_data/*", "static/*"]}, zip_safe=False,
    python_requires=f">={cfg['min_python']}", install_requires=cfg["requirements"].split(),
    extras_require={k: cfg[f"{k}_requirements"].split() for k in ("dev","endpoint","dpo","eval","cluster")},
    entry_points={"console_scripts": cfg["console_scripts"].split(), "nbdev": [f"{cfg['lib_name']}={cfg['lib_name']}._modidx:d"]},
)
